"""Read what the header of an image file says of its pixels, without decoding them and without naming anybody."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from PIL import ExifTags, Image

from dynammo_core.data.images.deep import JPEG2000_SIZE, PNG_DEPTH_AT, PNM_HEADER
from dynammo_core.data.images.dicom import open_dicom
from dynammo_core.data.images.formats import is_dicom, is_tiff, read_head
from dynammo_core.data.images.pictures import FORMATS, GREY_MODES

Colour = Literal["grey", "colour"]


@dataclass(frozen=True)
class Header:
    """The form of an image file's pixels.

    Attributes:
        format: as Pillow names it, such as PNG; TIFF; DICOM.
        width: pixels in a row, before any turn.
        height: rows.
        bits: bits that a channel uses.
        colour: whether it is grey or in colour; palettes are in colour.
        transparent: whether it has an alpha channel or a transparent colour.
        frames: frames or pages; a photograph with previews counts as one.
        turned: whether its EXIF orientation turns or mirrors it.
        burnt_in: whether a DICOM header says that the pixels themselves show who it is; None if it does not say.
    """

    format: str
    width: int
    height: int
    bits: int
    colour: Colour
    transparent: bool = False
    frames: int = 1
    turned: bool = False
    burnt_in: bool | None = None


def read_header(path: Path) -> Header | None:
    """Return what an image file's header says, or None if it cannot be read or is no image's."""
    try:
        head = read_head(path)
        if is_dicom(path, head):
            return _dicom(path)
        return _tiff(path) if is_tiff(head) else _picture(path, head)
    except Exception:  # readers raise whatever they stumble over in broken bytes; decoding says what is wrong
        return None


def _picture(path: Path, head: bytes) -> Header:
    with Image.open(path, formats=FORMATS) as image:
        return Header(
            format=str(image.format),
            width=image.width,
            height=image.height,
            bits=_bits(path, head, image),
            colour="grey" if image.mode in GREY_MODES or image.mode.startswith(("I", "F")) else "colour",
            transparent=image.has_transparency_data,
            frames=1 if image.format == "MPO" else getattr(image, "n_frames", 1),
            turned=image.getexif().get(ExifTags.Base.Orientation, 1) not in (0, 1),
        )


def _bits(path: Path, head: bytes, image: Image.Image) -> int:
    """Return the bits of a channel by the header: Pillow opens many files of 16 bits as if they had 8."""
    if image.format == "PNG":
        return max(head[PNG_DEPTH_AT], 8) if image.mode == "P" else head[PNG_DEPTH_AT]
    if image.format == "PPM":
        header = PNM_HEADER.match(path.read_bytes()[:1000])
        return int(header[4]).bit_length() if header else 8
    if image.format == "JPEG2000":
        content = path.read_bytes()
        return (content[content.index(JPEG2000_SIZE) + 42] & 0x7F) + 1
    return 1 if image.mode == "1" else 8


def _tiff(path: Path) -> Header:
    import tifffile  # takes a moment, and few data sets need it

    with tifffile.TiffFile(path) as file:
        page: Any = file.pages.first
        return Header(
            format="TIFF",
            width=page.imagewidth,
            height=page.imagelength,
            bits=page.bitspersample,
            colour="grey" if page.photometric.name in ("MINISBLACK", "MINISWHITE") else "colour",
            transparent=bool(page.extrasamples),
            frames=len(file.pages),
            turned=int(page.tags.valueof("Orientation", 1)) not in (0, 1),
        )


def _dicom(path: Path) -> Header:
    dataset = open_dicom(path, header_only=True)
    said = str(dataset.get("BurnedInAnnotation", "")).strip().upper()
    return Header(
        format="DICOM",
        width=int(dataset.Columns),
        height=int(dataset.Rows),
        bits=int(dataset.BitsStored),
        colour="grey" if str(dataset.PhotometricInterpretation).startswith("MONOCHROME") else "colour",
        frames=int(dataset.get("NumberOfFrames") or 1),
        burnt_in={"YES": True, "NO": False}.get(said),
    )
