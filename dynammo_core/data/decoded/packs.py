"""A pack: some hundreds of decoded images of one shape in two files, their rows and a sealed index of them.

The rows lie one behind the other, each encrypted by itself if the site has a key, so that any one can be read alone.
The index names what each row is and what its pixels hash to; rows without an index do not count.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from dynammo_core.data.decoded.stored_images import pixel_digest
from dynammo_core.memory.encryption import NONCE_BYTES, Decryption, encrypt
from dynammo_core.memory.private_files import make_private
from dynammo_core.memory.sealed_file import SealedFile
from dynammo_core.support.errors import MemoryStoreError

PACK_BYTES = 256 * 10**6
"""Bytes of pixels after which a new pack is begun."""
ROWS, INDEX = ".rows", ".index"
Owner = Mapping[str, str]


@dataclass(frozen=True)
class Contents:
    """What a pack holds: images of `shape` (C, S, S), what each of them is, and what its pixels hash to."""

    shape: tuple[int, int, int]
    names: tuple[str, ...]
    digests: tuple[bytes, ...]

    def packed(self) -> bytes:
        """Return the contents as text."""
        digests = [digest.hex() for digest in self.digests]
        return json.dumps({"shape": self.shape, "names": self.names, "digests": digests}).encode()

    @staticmethod
    def parse(content: bytearray) -> Contents:
        """Return what `packed` wrote.

        Raises:
            ValueError, KeyError or TypeError: no version wrote it.
        """
        fields = json.loads(content)
        channels, height, width = map(int, fields["shape"])
        names, digests = tuple(map(str, fields["names"])), tuple(map(bytes.fromhex, fields["digests"]))
        if len(names) != len(digests):
            raise ValueError(f"{len(names)} names and {len(digests)} hashes")
        return Contents((channels, height, width), names, digests)


class Pack:
    """A pack that is complete; its rows stay readable as long as this object lives, whoever deletes the files.

    Args:
        index: the file of its index.
        contents: what the index says.
        key: encrypts the rows; None for plain files.

    Raises:
        OSError: the rows cannot be opened.
    """

    def __init__(self, index: Path, contents: Contents, key: bytes | None) -> None:
        self.index = index
        self.contents = contents
        self._key = key
        self._rows = index.with_suffix(ROWS).open("rb", buffering=0)
        self._checked = np.zeros(len(contents.names), dtype=np.bool_)

    def read(self, row: int) -> Tensor:
        """Return one image, Tensor[C, S, S] uint8, which is what was written.

        Raises:
            MemoryStoreError: the row is damaged.
            OSError: it cannot be read.
        """
        shape = self.contents.shape
        image = torch.empty(shape, dtype=torch.uint8)
        into = image.numpy().data.cast("B")
        stride = row_bytes(shape, self._key)
        if self._key is None:
            whole = os.preadv(self._rows.fileno(), [into], row * stride) == stride
        else:
            sealed = os.pread(self._rows.fileno(), stride, row * stride)
            whole = len(sealed) == stride and _opened(sealed, into, self._key)
        if whole and not self._checked[row]:
            self._checked[row] = whole = pixel_digest(image) == self.contents.digests[row]
        if not whole:
            raise MemoryStoreError(f"row {row} of {self.index.with_suffix(ROWS)} is damaged")
        return image


class PackWriter:
    """A pack in the making.

    Args:
        folder: where its files lie.
        shape: of each image, (C, S, S).
        owner: whose images they are.
        key: encrypts them; None for plain files.
        capacity: bytes of rows after which it is full.

    Raises:
        MemoryStoreError or OSError: nothing can be written there.
    """

    def __init__(
        self, folder: Path, shape: tuple[int, int, int], owner: Owner, key: bytes | None, capacity: int
    ) -> None:
        make_private(folder)
        self._index = folder / f"{secrets.token_hex(16)}{INDEX}"
        self._shape, self._owner, self._key, self.capacity = shape, owner, key, capacity
        self._names, self._digests = list[str](), list[bytes]()
        handle = os.open(self._index.with_suffix(ROWS), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        self._rows: IO[bytes] = os.fdopen(handle, "wb", buffering=0)

    @property
    def full(self) -> bool:
        """Tell whether the next image belongs into another pack."""
        return self.written + row_bytes(self._shape, self._key) > self.capacity

    @property
    def written(self) -> int:
        """Return the bytes of the rows so far."""
        return len(self._names) * row_bytes(self._shape, self._key)

    def add(self, name: str, image: Tensor, digest: bytes) -> int:
        """Write an image, Tensor[C, S, S] uint8, with the hash of its pixels; return its row.

        Raises:
            OSError: the disk is full, or cannot be written.
        """
        pixels = image.contiguous().numpy().tobytes()
        row = pixels if self._key is None else b"".join(encrypt(pixels, b"", self._key))
        if self._rows.write(row) != len(row):
            raise OSError("the disk is full")
        self._names.append(name)
        self._digests.append(digest)
        return len(self._names) - 1

    def finish(self) -> Pack:
        """Write the index, by which the pack begins to count.

        Raises:
            DynammoError or OSError: it cannot be written.
        """
        self._rows.close()
        contents = Contents(self._shape, tuple(self._names), tuple(self._digests))
        _index_file(self._index, self._owner, self._key).write(contents.packed())
        return Pack(self._index, contents, self._key)

    def discard(self) -> None:
        """Delete what was written."""
        self._rows.close()
        self._index.with_suffix(ROWS).unlink(missing_ok=True)


def read_contents(index: Path, owner: Owner, key: bytes | None) -> Contents:
    """Return what a pack holds, by its index.

    Raises:
        MemoryStoreError: the index is missing or damaged, or does not fit key or owner.
    """
    contents = _index_file(index, owner, key).read_as("index of images", Contents.parse)
    if contents is None:
        raise MemoryStoreError(f"the index {index} has gone")
    return contents


def row_bytes(shape: tuple[int, int, int], key: bytes | None) -> int:
    """Return the bytes that an image of a shape takes in a pack."""
    channels, height, width = shape
    return channels * height * width + (0 if key is None else NONCE_BYTES + Decryption.tag_bytes)


def _opened(sealed: bytes, into: memoryview, key: bytes) -> bool:
    opening = Decryption(sealed[:NONCE_BYTES], b"", key)
    opening.take(memoryview(sealed)[NONCE_BYTES : -Decryption.tag_bytes], into)
    return opening.finish(sealed[-Decryption.tag_bytes :])


def _index_file(index: Path, owner: Owner, key: bytes | None) -> SealedFile:
    return SealedFile(index, {**owner, "content": "images", "name": index.stem}, key)
