"""The sources of images: arrays in memory, files on disk, and selections of either."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dynammo_core.data.images.decoding import decode_image
from dynammo_core.data.images.reading import AS_DECLARED, Reading
from dynammo_core.data.samples import ImageSource, Split


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
        return decode_image(self.paths[index], self.reading, self.places[index])


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


def read_as(split: Split, reading: Reading) -> Split:
    """Return a split whose files are read as the experiment declares; images in memory stay as they are."""
    return replace(split, source=_read_as(split.source, reading))


def _read_as(source: ImageSource, reading: Reading) -> ImageSource:
    if isinstance(source, Selection):
        beneath = _read_as(source.source, reading)
        # The very same source where nothing changes, by which two splits are known to come from one
        return source if beneath is source.source else replace(source, source=beneath)
    if isinstance(source, FileSource) and source.reading != reading:
        return replace(source, reading=reading)
    return source


def array_keys(images: NDArray[np.uint8]) -> list[str]:
    """Return a key for each image [N, ...], equal if the pixels are equal."""
    return [hashlib.sha256(image.tobytes()).hexdigest() for image in images]
