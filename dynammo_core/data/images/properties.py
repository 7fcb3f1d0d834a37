"""What a data sheet says of an image file, from its header alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynammo_core.data.images.decoding import reporting
from dynammo_core.data.images.deep import header_bits, orientation_of, valid_orientation
from dynammo_core.data.images.dicom import no_image, open_dicom
from dynammo_core.data.images.formats import is_dicom, is_tiff, read_head
from dynammo_core.data.images.pictures import count_frames, open_picture

TURNED = (5, 6, 7, 8)
"""EXIF's orientations by which rows become columns."""


@dataclass(frozen=True)
class ImageProperties:
    """What an image file declares.

    Attributes:
        format: such as PNG, JPEG, TIFF or DICOM.
        width: columns of the image as it is seen, that is, after it is turned.
        height: rows of the image as it is seen.
        bits: bits per channel that are used.
        mode: what the channels mean, in the words of the format's reader.
        frames: frames or pages.
        orientation: EXIF's number from 1 (upright) to 8.
        burnt_in: whether text or marks stand in the pixels, of which some may name the patient; None if the file does
            not say, as none but DICOM does.
    """

    format: str
    width: int
    height: int
    bits: int
    mode: str
    frames: int = 1
    orientation: int = 1
    burnt_in: bool | None = None


def read_properties(path: Path, place: str = "") -> ImageProperties:
    """Return what the header of an image file declares; no pixels are decoded.

    Raises:
        DataError: the file is missing, is no image, or its header is damaged.
    """
    with reporting(path, place):
        head = read_head(path)
        if is_dicom(path, head):
            return _of_dicom(path)
        return _of_tiff(path) if is_tiff(head) else _of_picture(path)


def _of_dicom(path: Path) -> ImageProperties:
    dataset = open_dicom(path, header_only=True)
    if "Rows" not in dataset:
        raise no_image(dataset)
    burnt_in = {"YES": True, "NO": False}.get(str(dataset.get("BurnedInAnnotation", "")))
    return ImageProperties(
        "DICOM",
        int(dataset.Columns),
        int(dataset.Rows),
        int(dataset.BitsStored),
        str(dataset.PhotometricInterpretation),
        int(dataset.get("NumberOfFrames") or 1),
        burnt_in=burnt_in,
    )


def _of_tiff(path: Path) -> ImageProperties:
    import tifffile  # takes a moment, and few data sets need it

    with tifffile.TiffFile(path) as file:
        page: Any = file.pages[0]
        orientation = valid_orientation(page.tags.valueof("Orientation"))
        size = _seen((page.imagewidth, page.imagelength), orientation)
        return ImageProperties("TIFF", *size, page.bitspersample, page.photometric.name, len(file.pages), orientation)


def _of_picture(path: Path) -> ImageProperties:
    with open_picture(path) as image:
        kind = "JPEG" if image.format == "MPO" else str(image.format)
        orientation = orientation_of(image)
        size, bits = _seen(image.size, orientation), header_bits(path, image)
        return ImageProperties(kind, *size, bits, image.mode, count_frames(image), orientation)


def _seen(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    return (size[1], size[0]) if orientation in TURNED else size
