"""TIFF and BigTIFF, by the tags of the page: 8 bits as any picture, more bits with the window that is declared."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dynammo_core.data.images.deep import DeepPixels, develop, upright, valid_orientation
from dynammo_core.data.images.pictures import over_black
from dynammo_core.data.images.reading import Reading
from dynammo_core.data.images.refusal import ImageRefusal, choose_frame, refuse_size

PHOTOMETRICS = ("MINISWHITE", "MINISBLACK", "RGB")
"""What the channels may mean, as TIFF names it, if they have more than 8 bits."""
PLANES_APART = 2
"""TIFF's number for channels that are stored one after another."""

# What is wrong with a file is said once, by the error that ends its reading
logging.getLogger("tifffile").setLevel(logging.CRITICAL)


def read_tiff(path: Path, reading: Reading) -> NDArray[np.uint8]:
    """Read a page of a TIFF file; see `decode_image`.

    Raises:
        ImageRefusal: the page is too large, holds what is no grey or colour image, or the reading does not say how to
            read it.
        Exception: whatever the decoders raise for a damaged file.
    """
    import tifffile  # takes a moment, and few data sets need it

    with tifffile.TiffFile(path) as file:
        frame = choose_frame(len(file.pages), reading)
        page: Any = file.pages[frame]
        refuse_size(page.imagewidth, page.imagelength)
        extra = tuple(int(kind) for kind in page.extrasamples)
        if 0 in extra or len(extra) > 1:
            raise ImageRefusal(
                f"has {page.samplesperpixel} channels and does not say what each of them is",
                accepted="grey or RGB, with or without one channel that is declared as alpha",
                remedy="Save it without the other channels",
            )
        associated = int(tifffile.EXTRASAMPLE.ASSOCALPHA) in extra
        plain = page.bitspersample <= 8 and page.sampleformat == tifffile.SAMPLEFORMAT.UINT
        if associated or not plain:
            return _read_page(page, reading, plain, associated)
    # Opened by its name, Pillow maps a plain file into memory as if it lay upright already
    with path.open("rb") as stream, Image.open(stream, formats=("TIFF",)) as image:
        image.seek(frame)
        return over_black(image)


def _read_page(page: Any, reading: Reading, plain: bool, associated: bool) -> NDArray[np.uint8]:
    """Read what Pillow would cut to 8 bits, or divide by its alpha."""
    meaning = page.photometric.name
    if meaning not in PHOTOMETRICS:
        raise ImageRefusal(
            f"has {page.bitspersample} bits a channel of the kind {meaning}",
            accepted=f"{', '.join(PHOTOMETRICS)} for more than 8 bits",
            remedy="Save it as grey or RGB",
        )
    values = page.asarray()
    if page.samplesperpixel > 1 and page.planarconfig == PLANES_APART:
        values = np.moveaxis(values, 0, -1)
    values = values.reshape(page.imagelength, page.imagewidth, page.samplesperpixel)
    orientation = valid_orientation(page.tags.valueof("Orientation"))
    if associated:
        if not plain:
            raise ImageRefusal(
                f"has {page.bitspersample} bits a channel, multiplied by alpha already, so that no window fits them",
                remedy="Save it without alpha, or with alpha that is not premultiplied",
            )
        # premultiplied colours are what lies over black
        return upright(values[..., 0] if values.shape[-1] == 2 else values[..., :-1], orientation)
    return develop(DeepPixels(values, bool(page.extrasamples), meaning == "MINISWHITE", orientation), reading)
