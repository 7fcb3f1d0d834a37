"""Images of one size that do not stand in memory: they are read whenever they are indexed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

IN_MEMORY = 256 * 10**6
"""Bytes up to which a set of images stands in memory, where reading it again and again costs nothing."""


def fit_in_memory(images: int, size: int) -> bool:
    """Tell whether so many colour images of a side of `size` pixels are few enough to stand in memory."""
    return images * 3 * size * size <= IN_MEMORY


class Images(Protocol):
    """N images of one size, as training and evaluation read them: a Tensor[N, C, S, S] uint8, or what is read like one.

    `images[:]` is the whole as a Tensor.
    """

    @property
    def shape(self) -> torch.Size:
        """Return N, C, S, S."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int | slice | Tensor) -> Tensor:
        """Return the images at an index, a slice, or a Tensor[B] int64 of indices."""
        ...


class Part(Protocol):
    """Images that were loaded together."""

    size: int
    """Side of each image in pixels."""

    def read(self, row: int) -> Tensor:
        """Return one image, Tensor[c, S, S] uint8 with c = 1 or 3."""
        ...

    def digest(self, row: int) -> bytes:
        """Return a hash of the pixels that `read` returns."""
        ...


class StoredImages:
    """N images in parts, in any order.

    Args:
        parts: where they come from.
        part: [N] the index of each image's part.
        row: [N] its row in that part.
        channels: C; a grey image is read as RGB where others are in colour.
    """

    def __init__(self, parts: Sequence[Part], part: NDArray[np.int64], row: NDArray[np.int64], channels: int) -> None:
        self._parts, self._part, self._row = tuple(parts), part, row
        self.shape = torch.Size((len(row), channels, parts[0].size, parts[0].size))

    def __len__(self) -> int:
        return len(self._row)

    def __getitem__(self, index: int | slice | Tensor) -> Tensor:
        """Read the images at an index, a slice, or a Tensor[B] int64 of indices."""
        if isinstance(index, int):
            return self[torch.tensor([index])][0]
        part, row = self._part[_positions(index)], self._row[_positions(index)]
        images = torch.empty(len(row), *self.shape[1:], dtype=torch.uint8)
        for image, one, other in zip(images, part.tolist(), row.tolist(), strict=True):
            image.copy_(self._parts[one].read(other))
        return images

    def chosen(self, index: Tensor) -> Images:
        """Return the images at a Tensor[B] of indices: unread, unless they are few enough for memory."""
        if fit_in_memory(len(index), self.shape[-1]):
            return self[index]
        return StoredImages(self._parts, self._part[index.numpy()], self._row[index.numpy()], self.shape[1])

    def digests(self) -> list[bytes]:
        """Return a hash of the pixels of each image; most are known without reading them."""
        return [
            self._parts[part].digest(row) for part, row in zip(self._part.tolist(), self._row.tolist(), strict=True)
        ]

    @staticmethod
    def joined(sets: Sequence[Images]) -> StoredImages:
        """Return several sets as one, without reading or copying any."""
        parts, part, row = list[Part](), list[NDArray[np.int64]](), list[NDArray[np.int64]]()
        for images in sets:
            one = images if isinstance(images, StoredImages) else _as_stored(images[:])
            part.append(one._part + len(parts))
            row.append(one._row)
            parts += one._parts
        return StoredImages(parts, np.concatenate(part), np.concatenate(row), max(one.shape[1] for one in sets))


class InMemory:
    """Images Tensor[N, c, S, S] that stand in memory, beside others that do not."""

    def __init__(self, images: Tensor) -> None:
        self.size = images.shape[-1]
        self._images = images

    def read(self, row: int) -> Tensor:
        """Return one image, Tensor[c, S, S] uint8."""
        return self._images[row]

    def digest(self, row: int) -> bytes:
        """Return a hash of its pixels."""
        return pixel_digest(self._images[row])


def pixel_digest(image: Tensor) -> bytes:
    """Return the SHA-256 of the pixels of one image, Tensor[c, S, S] uint8."""
    return hashlib.sha256(image.contiguous().numpy().data).digest()


def chosen(images: Images, index: Tensor) -> Images:
    """Return the images at a Tensor[B] of indices; many that are on disk stay there."""
    return images.chosen(index) if isinstance(images, StoredImages) else images[index]


def joined(sets: Sequence[Images]) -> Images:
    """Concatenate sets of images of one size, without copying what is large; grey ones become RGB if others are."""
    if any(isinstance(images, StoredImages) for images in sets):
        return StoredImages.joined(sets)
    channels = max(images.shape[1] for images in sets)
    return torch.cat([images[:].expand(-1, channels, -1, -1) for images in sets])


def add_pixels(digest: hashlib._Hash, images: Images) -> None:
    """Add all pixels to a hash; of images that are not in memory, add the hash of each instead, without reading it."""
    if isinstance(images, StoredImages):
        digest.update(b"".join(images.digests()))
    else:
        digest.update(images[:].contiguous().numpy().data)


def _as_stored(images: Tensor) -> StoredImages:
    rows = np.arange(len(images))
    return StoredImages([InMemory(images)], np.zeros_like(rows), rows, images.shape[1])


def _positions(index: slice | Tensor) -> slice | NDArray[np.int64]:
    if isinstance(index, slice):
        return index
    positions: NDArray[np.int64] = index.numpy()
    return positions
