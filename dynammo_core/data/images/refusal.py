"""Reasons not to read an image file, to which `decode_image` adds its name; and the two that all formats share."""

from __future__ import annotations

from dynammo_core.data.images.reading import Reading

MOST_PIXELS = 100_000_000
"""Pixels of the largest image that is decoded: beyond any camera or detector, and below what fills a memory."""


class ImageRefusal(Exception):  # noqa: N818  # the file may be whole, and what it lacks is a declaration
    """A reason not to read a file, as the rest of a sentence that begins with the image's name.

    It never holds what a header says of a patient, nor the words of a decoder, which may quote the header.
    """

    def __init__(self, why: str, *, accepted: str = "", remedy: str = "") -> None:
        super().__init__(why)
        self.why, self.accepted, self.remedy = why, accepted, remedy


def refuse_size(width: int, height: int) -> None:
    """Refuse an image without pixels or with too many, before it is decoded.

    Raises:
        ImageRefusal: the number of pixels is 0 or above `MOST_PIXELS`.
    """
    if not 0 < width * height <= MOST_PIXELS:
        raise ImageRefusal(
            f"has {width} x {height} pixels",
            accepted=f"1 to {MOST_PIXELS:,} pixels",
            remedy="Cut what the diagnosis needs into an image of its own, or take the file out of the data set",
        )


def choose_frame(frames: int, reading: Reading) -> int:
    """Return the frame to read, from 0, of a file with so many; where there is one, nothing is to be chosen.

    Raises:
        ImageRefusal: there are several and the reading names none, or it names one that is not there.
    """
    if frames == 1:
        return 0
    if reading.frame is None:
        raise ImageRefusal(
            f"has {frames} frames or pages",
            accepted="files with one, unless data.frame says which to take",
            remedy="Set data.frame to the frame that the diagnosis needs, from 1, or save that frame as a file",
        )
    if reading.frame > frames:
        raise ImageRefusal(
            f"has {frames} frames or pages, and data.frame asks for number {reading.frame}",
            accepted=f"1 to {frames} for this file",
            remedy="Correct data.frame, or take the file out of the data set",
        )
    return reading.frame - 1
