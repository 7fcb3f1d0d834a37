"""Image files of cameras, screens and exports, each by its own header: PNG, JPEG, WebP, GIF, BMP, PNM, JPEG 2000."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError

from dynammo_core.data.images.deep import composite, develop, header_bits, orientation_of, read_deep, upright
from dynammo_core.data.images.formats import read_head
from dynammo_core.data.images.reading import Reading
from dynammo_core.data.images.refusal import MOST_PIXELS, ImageRefusal, choose_frame, refuse_size

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "DIB", "PPM", "JPEG2000")
"""The formats as Pillow names them (MPO opens as JPEG); no others are tried, since some make it start programs."""
GREY_MODES = ("1", "L", "LA")
COLOUR_MODES = ("RGB", "RGBA", "P", "PA", "CMYK", "YCbCr")

JPEG_MARK = b"\xff\xd8\xff"

# Pillow warns of images that are large, where those that are too large are refused, and of each damaged tag
warnings.filterwarnings("ignore", module=r"PIL\b")


def read_picture(path: Path, reading: Reading) -> NDArray[np.uint8]:
    """Read an image file of any format of `FORMATS`; see `decode_image`.

    Raises:
        ImageRefusal: the image is too large, or the reading does not say how to read it.
        Exception: whatever Pillow raises for a damaged file, or for one of another format.
    """
    with open_picture(path) as image:
        refuse_size(*image.size)
        if isinstance(image, ImageFile.ImageFile) and image.format == "PPM":
            _refuse_second_image(path, image)
        frame = choose_frame(count_frames(image), reading)
        if deep := read_deep(path, image):
            if frame:
                raise ImageRefusal("has several frames of more than 8 bits", remedy="Save the frame as a file")
            return develop(deep, reading)
        if frame:
            image.seek(frame)
        return over_black(image)


def count_frames(image: Image.Image) -> int:
    """Return how many frames an opened image has that are images of their own.

    Phones store a photograph with previews or a second view behind it, as MPO: the photograph comes first and is alone.
    """
    return 1 if image.format == "MPO" else getattr(image, "n_frames", 1)


def _refuse_second_image(path: Path, image: ImageFile.ImageFile) -> None:
    """Refuse a PNM file in which another image follows the first, which Pillow does not see.

    Raises:
        ImageRefusal: one follows.
    """
    width, height = image.size
    wide = header_bits(path, image) > 8
    row = {b"P4": (width + 7) // 8, b"P5": width << wide, b"P6": 3 * width << wide}.get(read_head(path)[:2])
    if row is None:
        return  # a plain file holds exactly one image
    with path.open("rb") as file:
        file.seek(image.tile[0].offset + height * row)
        if file.read(16).lstrip().startswith(b"P"):
            raise ImageRefusal("has several images in one PNM file", remedy="Save each image as a file of its own")


def open_picture(path: Path) -> Image.Image:
    """Open an image file of a format of `FORMATS`, without decoding it.

    Raises:
        ImageRefusal: it has far too many pixels, or is JPEG that Pillow cannot read.
        ValueError: it is of no such format.
    """
    try:
        return Image.open(path, formats=FORMATS)
    except UnidentifiedImageError as error:
        if read_head(path).startswith(JPEG_MARK):
            raise ImageRefusal(
                "is JPEG of a kind that is not read here, or its first bytes are damaged",
                accepted="JPEG of 8 bits a channel, as cameras write it; not of 12 bits, lossless or arithmetic",
                remedy="Save it as PNG or TIFF; of more than 8 bits, together with data.window",
            ) from error
        raise ValueError("its content is of no format that is read here, or its first bytes are damaged") from error
    except Image.DecompressionBombError as error:
        raise ImageRefusal(
            "has more pixels than any image of a clinic", accepted=f"at most {MOST_PIXELS:,} pixels"
        ) from error


def over_black(image: Image.Image) -> NDArray[np.uint8]:
    """Return an opened image of 8 bits, upright and with black beneath what is transparent: [H, W] or [H, W, 3].

    Raises:
        ImageRefusal: the pixels are of a kind whose range is not known.
    """
    if image.mode not in GREY_MODES + COLOUR_MODES:
        raise ImageRefusal(
            f"has pixels of the kind {image.mode}",
            accepted="grey or colour images",
            remedy="Save it as an 8-bit PNG, or as TIFF of more bits together with data.window",
        )
    plain, with_alpha = ("L", "LA") if image.mode in GREY_MODES else ("RGB", "RGBA")
    image.load()  # turns a TIFF upright, and takes the tag away
    orientation = orientation_of(image)
    if not image.has_transparency_data:
        return upright(np.array(image.convert(plain)), orientation)
    pixels = np.array(image.convert(with_alpha))
    shown = composite(pixels[..., :-1], pixels[..., -1:], opaque=255)
    return upright(shown[..., 0] if plain == "L" else shown, orientation)
