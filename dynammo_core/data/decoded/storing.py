"""Storing images in packs while they are decoded, as far as there is room; what fails costs time, not the images."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from torch import Tensor

from dynammo_core.data.decoded import packs
from dynammo_core.data.decoded.packs import Owner, Pack, PackWriter, row_bytes
from dynammo_core.support.errors import DynammoError

INDEX_BYTES = 512
"""More than the index of a pack takes for each image, and for itself."""
Room = Callable[[int], bool]
"""Makes room for so many more bytes; tells whether there is."""
logger = logging.getLogger("dynammo.image_cache")


@dataclass(slots=True)
class Stored:
    """A decoded image, and where it is.

    Attributes:
        channels: 1 or 3.
        digest: hash of its pixels.
        row: its row in the pack.
        pack: where it is stored; None while that is being written, or if it is nowhere.
        pixels: the image itself, Tensor[c, S, S] uint8, if it was kept in memory.
    """

    channels: int
    digest: bytes
    row: int = 0
    pack: Pack | None = None
    pixels: Tensor | None = None


class Storing:
    """Takes images as they are decoded; at its end, even by an error, what it took is stored.

    Args:
        folder: of the packs.
        owner: whose images they are.
        key: encrypts them; None for plain files.
        room: makes room; None stores nothing.
    """

    def __init__(self, folder: Path, owner: Owner, key: bytes | None, room: Room | None) -> None:
        self._folder, self._owner, self._key, self._room = folder, owner, key, room
        self._writers: dict[int, tuple[PackWriter, list[Stored]]] = {}
        """By the number of channels, each with the images that it holds."""

    def __enter__(self) -> Storing:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for channels in list(self._writers):
            self._finish(channels)

    def put(self, content: str, image: Tensor, stored: Stored, left: int) -> None:
        """Store an image.

        Args:
            content: what its file holds.
            image: Tensor[c, S, S] uint8.
            stored: is told where it went.
            left: images that may follow, with this one.
        """
        channels = image.shape[0]
        if self._room is None:
            return
        try:
            if channels not in self._writers:
                self._open(tuple(image.shape), left)
            if channels in self._writers:
                writer, images = self._writers[channels]
                stored.row = writer.add(content, image, stored.digest)
                images.append(stored)
                if writer.full:
                    self._finish(channels)
        except (DynammoError, OSError) as error:
            self._give_up(error)

    def _open(self, shape: tuple[int, ...], left: int) -> None:
        channels, height, width = shape
        reserved = sum(writer.capacity - writer.written for writer, _ in self._writers.values())
        row = row_bytes((channels, height, width), self._key)
        rows = min(left, max(1, packs.PACK_BYTES // row))
        assert self._room is not None
        if self._room(reserved + rows * (row + INDEX_BYTES) + INDEX_BYTES):
            writer = PackWriter(self._folder, (channels, height, width), self._owner, self._key, rows * row)
            self._writers[channels] = writer, []
        else:
            self._room = None
            logger.warning("decoded images fill their budget on disk: %d are not kept there, and decoded again", left)

    def _finish(self, channels: int) -> None:
        writer, images = self._writers.pop(channels)
        try:
            pack = writer.finish()
        except (DynammoError, OSError) as error:
            writer.discard()
            self._give_up(error)
            return
        for image in images:
            image.pack = pack

    def _give_up(self, error: Exception) -> None:
        logger.warning("decoded images are not kept on disk: %s", getattr(error, "strerror", None) or error)
        self._room = None
        for writer, _ in self._writers.values():
            writer.discard()
        self._writers.clear()
