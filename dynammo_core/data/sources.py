"""The sources of images: arrays in memory, files on disk, and selections of either."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dynammo_core.data.images.reading import AS_DECLARED, Reading
from dynammo_core.data.samples import ImageSource, Split
from dynammo_core.support.errors import DataError

GREY_MODES = ("1", "L", "LA", "La")
COLOUR_MODES = ("RGB", "RGBA", "RGBa", "RGBX", "P", "PA", "CMYK", "YCbCr", "LAB", "HSV")


@dataclass(frozen=True, eq=False)
class ArraySource:
    """Images that are already in memory: uint8 [N, H, W] (grey) or [N, H, W, 3] (RGB)."""

    images: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> NDArray[np.uint8]:
        """Return image `index`, as `ImageSource` declares."""
        image: NDArray[np.uint8] = self.images[index]
        return image


@dataclass(frozen=True, eq=False)
class FileSource:
    """Image files; `places` says where each was named (a row of a manifest), or is empty."""

    paths: tuple[Path, ...]
    places: tuple[str, ...]
    reading: Reading = AS_DECLARED

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> NDArray[np.uint8]:
        """Return image `index`, as `ImageSource` declares."""
        return decode_image(self.paths[index], self.places[index])


@dataclass(frozen=True, eq=False)
class Selection:
    """Some images of another source, in a given order."""

    source: ImageSource
    indices: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, index: int) -> NDArray[np.uint8]:
        """Return image `index`, as `ImageSource` declares."""
        return self.source.read(int(self.indices[index]))


def resolve_selection(source: ImageSource, indices: NDArray[np.int64]) -> tuple[ImageSource, NDArray[np.int64]]:
    """Return the source that holds the images, beneath all selections, and their indices there."""
    while isinstance(source, Selection):
        indices = source.indices[indices]
        source = source.source
    return source, indices


def select(split: Split, indices: NDArray[np.int64]) -> Split:
    """Return the part of a split at `indices`, in that order; nothing is read or copied."""
    source, held = resolve_selection(split.source, indices)
    chosen = indices.tolist()
    sites = split.sites
    return Split(
        source=Selection(source, held),
        labels=split.labels[indices],
        record_ids=tuple(split.record_ids[i] for i in chosen),
        sites=None if sites is None else tuple(sites[i] for i in chosen),
        patients=tuple(split.patients[i] for i in chosen) if split.patients else (),
        contents=tuple(split.contents[i] for i in chosen) if split.contents else (),
    )


def chain(one: Split, other: Split) -> Split:
    """Return two parts of one source, one after the other; nothing is read or copied."""
    (source, held), (beneath, more) = (
        resolve_selection(part.source, np.arange(len(part.labels))) for part in (one, other)
    )
    if source is not beneath:
        raise ValueError("the two parts do not come from one source")
    return Split(
        source=Selection(source, np.concatenate([held, more])),
        labels=np.concatenate([one.labels, other.labels]),
        record_ids=one.record_ids + other.record_ids,
        sites=None if one.sites is None or other.sites is None else one.sites + other.sites,
        patients=one.patients + other.patients,
        contents=one.contents + other.contents,
    )


def named(path: Path, place: str) -> str:
    """Return path and place for messages: `/data/a.png (row 7 of /data/manifest.csv)`."""
    return f"{path} ({place})" if place else str(path)


def decode_image(path: Path, place: str = "") -> NDArray[np.uint8]:
    """Decode an image file to uint8 [H, W] (grey) or [H, W, 3] (RGB).

    Transparency is dropped, and so are frames after the first.

    Raises:
        DataError: the file is missing, not an image, truncated, or has more than 8 bits per channel.
    """
    try:
        with Image.open(path) as image:
            mode = image.mode
            if mode in GREY_MODES:
                return np.array(image.convert("L"))
            if mode in COLOUR_MODES:
                return np.array(image.convert("RGB"))
    # Decoders raise whatever they stumble over in broken bytes: OSError, SyntaxError, struct.error, IndexError ...
    except Exception as error:
        raise DataError(
            f"the image {named(path, place)} cannot be read: {error}",
            accepted="a whole image file of a format that Pillow reads, such as PNG, JPEG or TIFF",
            remedy="Replace the file, or take it out of the data set",
        ) from error
    raise DataError(
        f"the image {named(path, place)} has pixels of mode {mode}, more than 8 bits a channel",
        accepted="8-bit grey or colour images",
        remedy="Convert it to 8 bits with the intensity window that the diagnosis needs: no default would be right",
    )


def array_keys(images: NDArray[np.uint8]) -> list[str]:
    """Return a key for each image [N, ...], equal if the pixels are equal."""
    return [hashlib.sha256(image.tobytes()).hexdigest() for image in images]
