"""One image file to 8-bit pixels: which reader takes it, and how a refusal names it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dynammo_core.data.images.dicom import read_dicom
from dynammo_core.data.images.formats import HEAD, is_dicom, is_tiff
from dynammo_core.data.images.pictures import read_picture
from dynammo_core.data.images.reading import AS_DECLARED, Reading
from dynammo_core.data.images.refusal import ImageRefusal
from dynammo_core.data.images.tiff import read_tiff
from dynammo_core.support.errors import DataError

FORMATS = "PNG, JPEG, TIFF, WebP, GIF, BMP, PNM, JPEG 2000 or DICOM"


def named(path: Path, place: str) -> str:
    """Return path and place for messages: `/data/a.png (row 7 of /data/manifest.csv)`."""
    return f"{path} ({place})" if place else str(path)


def decode_image(path: Path, reading: Reading = AS_DECLARED, place: str = "") -> NDArray[np.uint8]:
    """Decode an image file to uint8 [H, W] (grey) or [H, W, 3] (RGB).

    The image is turned as its EXIF orientation says, what is transparent lies over black, and values of more than 8
    bits go through the window that the reading declares.

    Args:
        path: the file; its content decides of which format it is.
        reading: what the file alone does not decide.
        place: where the file was named, for messages.

    Raises:
        DataError: the file is missing, damaged or not an image, or the reading does not say how to read it: it has
            several frames, or more than 8 bits and no window.
    """
    with reporting(path, place):
        with path.open("rb") as file:
            head = file.read(HEAD)
        if is_dicom(path, head):
            return read_dicom(path, reading)
        return read_tiff(path, reading) if is_tiff(head) else read_picture(path, reading)


@contextmanager
def reporting(path: Path, place: str = "") -> Iterator[None]:
    """Turn whatever readers raise into one sentence that names the file.

    Raises:
        DataError: anything was raised.
    """
    try:
        yield
    except ImageRefusal as refusal:
        raise DataError(
            f"the image {named(path, place)} {refusal.why}", accepted=refusal.accepted, remedy=refusal.remedy
        ) from refusal
    # Decoders raise whatever they stumble over in broken bytes: OSError, SyntaxError, struct.error, IndexError ...
    except Exception as error:
        raise DataError(
            f"the image {named(path, place)} cannot be read: {_reason(error)}",
            accepted=f"a whole image file: {FORMATS}",
            remedy="Replace the file, or take it out of the data set",
        ) from error


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__
