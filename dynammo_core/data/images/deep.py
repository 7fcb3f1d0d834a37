"""Pixels of more than 8 bits from files that are not DICOM, and their way through the declared window to 8 bits."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from dynammo_core.data.images.reading import FROM_FILE, WINDOWS, Reading
from dynammo_core.data.images.refusal import ImageRefusal
from dynammo_core.data.images.windows import Function, apply_window

PNG_DEPTH_AT = 24
"""Where a PNG's first chunk says how many bits a channel has."""
JPEG2000_SIZE = b"\xff\x4f\xff\x51"
"""The first two markers of a JPEG 2000 codestream; 38 bytes behind the second stands how many components follow."""
PNM_HEADER = re.compile(rb"P([2356])\s+(?:#[^\n]*\n\s*)*(\d+)\s+(?:#[^\n]*\n\s*)*(\d+)\s+(?:#[^\n]*\n\s*)*(\d+)\s")


@dataclass(frozen=True)
class DeepPixels:
    """What a file stores.

    Attributes:
        values: [H, W, C] integers or floats, C is 1 (grey) or 3 (RGB), and 1 more with alpha.
        alpha: whether the last channel is opacity, from 0 to the largest value of its type.
        white_is_zero: whether small values are bright.
        orientation: EXIF's number from 1 to 8 for how the rows and columns lie.
    """

    values: NDArray[Any]
    alpha: bool = False
    white_is_zero: bool = False
    orientation: int = 1


def develop(pixels: DeepPixels, reading: Reading) -> NDArray[np.uint8]:
    """Map stored values to uint8 [H, W] or [H, W, 3]: the window, then black beneath what is transparent, then upright.

    Integers go through the window as DICOM's LINEAR says, floats as LINEAR_EXACT: half a unit matters to whole numbers
    alone.

    Raises:
        ImageRefusal: the reading declares no window, or one that does not fit, or a value is complex or not finite.
    """
    if pixels.values.dtype.kind not in "iuf":
        raise ImageRefusal(
            f"holds values that are no plain numbers ({pixels.values.dtype})",
            accepted="integers and floats",
            remedy="Save what is to be seen of them, such as the magnitude",
        )
    whole = pixels.values.dtype.kind in "iu"
    if not whole and not np.isfinite(pixels.values).all():
        raise ImageRefusal("holds values that are not finite", remedy="Replace them by numbers that mean something")
    centre, width = _declared(reading, pixels.values.dtype)
    function = Function.LINEAR if whole else Function.LINEAR_EXACT
    colours = pixels.values[..., :-1] if pixels.alpha else pixels.values
    shown = apply_window(colours, centre, width, function)
    if pixels.white_is_zero:
        shown = 255 - shown
    if pixels.alpha:
        shown = composite(shown, pixels.values[..., -1:], int(np.iinfo(pixels.values.dtype).max))
    return upright(shown[..., 0] if shown.shape[-1] == 1 else shown, pixels.orientation)


def _declared(reading: Reading, kind: np.dtype[Any]) -> tuple[float, float]:
    if reading.window == FROM_FILE:
        raise ImageRefusal(
            f"has more than 8 bits a channel ({kind}) and does not say which of its values the diagnosis needs",
            accepted="files of 8 bits, or DICOM that declares its window, unless data.window is set",
            remedy="Set data.window to [centre, width] in the file's own units: no default would be right",
        )
    if not isinstance(reading.window, str):
        return reading.window
    if kind.kind == "u":
        raise ImageRefusal(
            f"holds values without a sign ({kind}), and data.window is {reading.window}, which is in Hounsfield units",
            accepted="a named window for CT in DICOM, or for files that store Hounsfield units with their sign",
            remedy="Set data.window to [centre, width] in the file's own units",
        )
    return WINDOWS[reading.window]


def composite(colours: NDArray[np.uint8], alpha: NDArray[Any], opaque: int) -> NDArray[np.uint8]:
    """Lay [H, W, C] over black: a value v with alpha a becomes v * a / `opaque`, rounded to the nearest integer."""
    # `opaque` is odd, so that no value lies halfway between two integers
    shown = (2 * colours.astype(np.int64) * alpha.astype(np.int64) + opaque) // (2 * opaque)
    return shown.astype(np.uint8)


def upright(image: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Turn and mirror [H, W, ...] as EXIF's orientation says; a number that means nothing leaves it as it is."""
    if orientation in (5, 6, 7, 8):
        image = image.swapaxes(0, 1)
    rows = -1 if orientation in (3, 4, 7, 8) else 1
    columns = -1 if orientation in (2, 3, 6, 7) else 1
    return np.ascontiguousarray(image[::rows, ::columns])


def orientation_of(image: Image.Image) -> int:
    """Return the orientation, 1 to 8, that the EXIF data of an opened image declare; or 1, which is upright."""
    return valid_orientation(image.getexif().get(ExifTags.Base.Orientation))


def valid_orientation(declared: object) -> int:
    """Return what a tag declares if it is one of the eight orientations, else 1."""
    return declared if isinstance(declared, int) and declared in range(1, 9) else 1


def header_bits(path: Path, image: Image.Image) -> int:
    """Return the bits per channel that the header of an opened image declares; a sign counts as a ninth.

    Raises:
        Exception: whatever a damaged header makes fail.
    """
    if image.format == "PNG":
        with path.open("rb") as file:
            return file.read(PNG_DEPTH_AT + 1)[PNG_DEPTH_AT]
    if image.format == "JPEG2000":
        return _jpeg2000_bits(path.read_bytes())
    if image.format == "PPM" and (header := PNM_HEADER.match(path.read_bytes())):
        return max(int(header[4]), 1).bit_length()
    return 1 if image.mode == "1" else 8


def read_deep(path: Path, image: Image.Image) -> DeepPixels | None:
    """Return the stored values of an opened image if its header declares more than 8 bits, else None.

    Raises:
        Exception: whatever a decoder raises for a damaged file.
    """
    if header_bits(path, image) <= 8:
        return None
    if image.format == "PNG":
        return _read_png(path, image)
    return _read_jpeg2000(path.read_bytes()) if image.format == "JPEG2000" else _read_pnm(path.read_bytes())


def _read_png(path: Path, image: Image.Image) -> DeepPixels:
    import imagecodecs  # takes a moment, and few data sets need it

    values = imagecodecs.png_decode(path.read_bytes())
    values = values[..., None] if values.ndim == 2 else values
    # a colour that the header calls transparent has become a channel of opacity by now
    return DeepPixels(values, alpha=values.shape[-1] in (2, 4), orientation=orientation_of(image))


def _jpeg2000_bits(content: bytes) -> int:
    components = content.index(JPEG2000_SIZE) + 2 + 38
    count = int.from_bytes(content[components : components + 2], "big")
    sizes = content[components + 2 : components + 2 + 3 * count : 3]
    # the first bit of a size is the sign, and the rest the number of bits less one
    return max((size & 0x7F) + 1 + (size >> 7) for size in sizes)


def _read_jpeg2000(content: bytes) -> DeepPixels:
    import imagecodecs

    values = imagecodecs.jpeg2k_decode(content)
    values = values[..., None] if values.ndim == 2 else values
    if values.shape[-1] not in (1, 3):
        raise ImageRefusal(
            f"is JPEG 2000 of more than 8 bits with {values.shape[-1]} channels",
            accepted="1 (grey) or 3 (RGB)",
            remedy="Save it as PNG or TIFF, which say what each channel is",
        )
    return DeepPixels(values)


def _read_pnm(content: bytes) -> DeepPixels:
    header = PNM_HEADER.match(content)
    assert header is not None, "header_bits has read it"
    width, height, channels = int(header[2]), int(header[3]), 3 if header[1] in b"36" else 1
    body = content[header.end() :]
    numbers = body.split() if header[1] in b"23" else np.frombuffer(body[: len(body) // 2 * 2], dtype=">u2")
    values = np.array(numbers[: height * width * channels]).astype(np.uint16)
    return DeepPixels(values.reshape(height, width, channels))
