"""Decoded images on disk, so that a process that comes later decodes nothing."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Collection, Container, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import features
from torch import Tensor

from dynammo_core.data.decoded.all_cores import in_order
from dynammo_core.data.decoded.packs import INDEX, ROWS, Contents, Pack, read_contents
from dynammo_core.data.decoded.stored_images import Images, StoredImages, fit_in_memory, pixel_digest
from dynammo_core.data.decoded.storing import Stored, Storing
from dynammo_core.data.images import reading
from dynammo_core.data.images.reading import Fit, Reading
from dynammo_core.memory.private_files import discard, locked_folder
from dynammo_core.support.errors import DynammoError, MemoryStoreError

DECODERS = {
    **{name: name for name in ("torch", "numpy", "imagecodecs", "tifffile", "pydicom")},
    **{"pillow": "PIL", "python-gdcm": "gdcm"},
}
"""Packages that decode and resize, and how they are imported, if they are there."""
SPARE = 2 * 10**9
"""Bytes that stay free on the disk: other files of a site must not fail for a cache."""
logger = logging.getLogger("dynammo.image_cache")


@dataclass(frozen=True)
class Preparation:
    """All that decides, beside a file's bytes, which pixels it becomes.

    Attributes:
        reading: how its values are read.
        size: side of the prepared image, in pixels.
        fit: how it becomes square.
    """

    reading: Reading
    size: int
    fit: Fit

    @property
    def name(self) -> str:
        """Return a name that differs for every other preparation."""
        return hashlib.sha256(json.dumps([_decoders(), asdict(self)]).encode()).hexdigest()[:16]


@lru_cache(maxsize=1)
def _decoders() -> list[str]:
    """Return the versions of all that makes pixels of a file: another may make others."""
    own = Path(reading.__file__).parent
    code = hashlib.sha256(b"\0".join(path.read_bytes() for path in sorted(own.glob("*.py")))).hexdigest()
    packages = [f"{name} {version(name)}" for name in DECODERS if find_spec(DECODERS[name])]
    libraries = [f"{name} {features.version(name)}" for name in features.get_supported()]
    return [code, *packages, *libraries]


class ImageCache:
    """A folder of packs of decoded images, by the content of their files and their preparation.

    They hold nothing that could not be decoded again: a lost or damaged pack is decoded anew, and one that cannot be
    written costs time, not the step. Those unused for longest go first.

    Args:
        folder: where they lie, with a folder for each preparation.
        budget: bytes that they may take.
        site: whose images they are.
        key: encrypts them, as it encrypts the memory; None for plain files.
        longest_unused: seconds after which a pack goes of which no set used every image: one may be of an image that is
            no longer there. None: packs go for want of room alone.
    """

    def __init__(
        self, folder: Path, budget: int, *, site: str, key: bytes | None = None, longest_unused: int | None = None
    ) -> None:
        self._folder, self._budget, self._key = folder, budget, key
        self._owner = {"site": site}
        self._longest_unused = longest_unused
        self._read: dict[Path, Contents] = {}

    def load(
        self,
        paths: Sequence[Path],
        contents: Sequence[str],
        preparation: Preparation,
        decode: Callable[[int], Tensor],
    ) -> Images:
        """Return the prepared images of N files: many are read from the disk when they are needed.

        Args:
            paths: the files.
            contents: the SHA-256 of each file's bytes, in hexadecimal digits.
            preparation: what `decode` does to each.
            decode: makes the image Tensor[c, S, S] uint8 of the file at a place in `paths`; called by several threads.

        Raises:
            DataError: what `decode` raises.
        """
        size, folder = preparation.size, self._folder / preparation.name
        small = fit_in_memory(len(paths), size)
        places = {content: place for place, content in enumerate(contents)}
        found = self._found(folder, places)
        if len(found) < len(places):

            def read(place: int) -> tuple[Tensor, bool]:
                image = decode(place)
                return image, _sha256(paths[place]) == contents[place]  # it may have changed since

            found = self._completed(folder, places, read, keep=small)
        self._use(found)
        rows = np.arange(len(contents))
        channels = max(image.channels for image in found.values())
        part = _Loaded(size, [found[content] for content in contents], decode)
        images = StoredImages([part], np.zeros_like(rows), rows, channels)
        return images[:] if small else images

    def _completed(
        self, folder: Path, places: Mapping[str, int], read: Callable[[int], tuple[Tensor, bool]], *, keep: bool
    ) -> dict[str, Stored]:
        """Decode and store what is missing, unless another process that held the folder has done so by now."""
        with ExitStack() as stack:
            alone = True
            try:
                stack.enter_context(locked_folder(folder))
                _delete_orphans(folder)
            except (MemoryStoreError, OSError) as error:
                _warn(error)
                alone = False
            found = self._found(folder, places)
            missing = {content: place for content, place in places.items() if content not in found}

            def room(wanted: int) -> bool:
                return self._make_room(wanted, {image.pack.index for image in found.values() if image.pack})

            with Storing(folder, self._owner, self._key, room if alone else None) as storing:
                decoded = zip(missing, in_order(read, list(missing.values())), strict=True)
                for done, (content, (image, true)) in enumerate(decoded):
                    stored = Stored(image.shape[0], pixel_digest(image), pixels=image if keep else None)
                    found[content] = stored
                    if true:
                        storing.put(content, image, stored, left=len(missing) - done)
        return found

    def _found(self, folder: Path, wanted: Collection[str]) -> dict[str, Stored]:
        """Return those of the wanted images that are stored, by name."""
        found: dict[str, Stored] = {}
        for index in folder.glob(f"*{INDEX}"):
            try:
                contents = self._contents(index)
                rows = [row for row, name in enumerate(contents.names) if name in wanted and name not in found]
                pack = Pack(index, contents, self._key) if rows else None
            except (DynammoError, OSError) as error:
                _warn(error)
                _delete(index)
                continue
            for row in rows:
                found[contents.names[row]] = Stored(contents.shape[0], contents.digests[row], row, pack)
        return found

    def _contents(self, index: Path) -> Contents:
        if index not in self._read:
            self._read[index] = read_contents(index, self._owner, self._key)
        return self._read[index]

    def _use(self, found: Mapping[str, Stored]) -> None:
        """Note which packs were used, and delete those whose time has come."""
        packs = {image.pack.index: image.pack for image in found.values() if image.pack}
        for index, pack in packs.items():
            if self._longest_unused is None or all(name in found for name in pack.contents.names):
                with suppress(OSError):
                    os.utime(index)
        with suppress(OSError):
            self._make_room(0, ())  # of those used just now too, if the budget is smaller than it was

    def _make_room(self, wanted: int, in_use: Container[Path]) -> bool:
        """Delete packs until there is room for so many bytes more; tell whether there is."""
        packs = []
        for index in self._folder.glob(f"*/*{INDEX}"):
            with suppress(OSError):
                packs.append((index.stat().st_mtime, index))
        taken = sum(map(_size, self._folder.glob("*/*")))
        oldest = 0.0 if self._longest_unused is None else time.time() - self._longest_unused
        for used, index in sorted(packs):
            if used < oldest or (taken + wanted > self._budget and index not in in_use):
                taken -= _size(index) + _size(index.with_suffix(ROWS))
                _delete(index)
        return taken + wanted <= self._budget and wanted + SPARE <= shutil.disk_usage(self._folder).free


class _Loaded:
    """The images of one call, in the order in which they were asked for."""

    def __init__(self, size: int, images: Sequence[Stored], decode: Callable[[int], Tensor]) -> None:
        self.size = size
        self._images, self._decode = images, decode

    def read(self, row: int) -> Tensor:
        """Return one image, Tensor[c, S, S] uint8: decoded again if it is stored nowhere, or damaged there."""
        image = self._images[row]
        if image.pixels is not None:
            return image.pixels
        if image.pack is not None:
            try:
                return image.pack.read(image.row)
            except (MemoryStoreError, OSError) as error:
                _warn(error)
                _delete(image.pack.index)
                image.pack = None
        return self._decode(row)

    def digest(self, row: int) -> bytes:
        """Return a hash of its pixels."""
        return self._images[row].digest


def discard_images(folder: Path) -> None:
    """Delete all decoded images in the folder of a cache: withdrawn records may be among them.

    The folders stay: a step may be keeping others in them.

    Raises:
        MemoryStoreError: some cannot be deleted.
    """
    discard((*folder.glob(f"*/*{INDEX}"), *folder.glob(f"*/*{ROWS}")), "decoded images")


def _sha256(path: Path) -> str:
    with suppress(OSError), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
    return ""


def _warn(error: Exception) -> None:
    logger.warning("images are decoded again: %s", getattr(error, "strerror", None) or error)


def _delete_orphans(folder: Path) -> None:
    """Delete rows without an index: a process was killed while it wrote them. Nobody else may be writing."""
    for rows in folder.glob(f"*{ROWS}"):
        if not rows.with_suffix(INDEX).exists():
            rows.unlink(missing_ok=True)


def _delete(index: Path) -> None:
    """Delete a pack; its index first, by which it counts."""
    for path in (index, index.with_suffix(ROWS)):
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _size(path: Path) -> int:
    with suppress(OSError):
        return path.stat().st_size
    return 0
