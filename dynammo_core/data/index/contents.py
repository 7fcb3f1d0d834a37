"""What image files are known by, whatever their names: their SHA-256, and in DICOM the patient; each is read once."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from rich.progress import track

from dynammo_core.data.images.decoding import named, reporting
from dynammo_core.data.images.dicom import patient_of
from dynammo_core.data.index.folders import DEFAULT_HOME
from dynammo_core.memory.private_files import discard
from dynammo_core.memory.sealed_file import SealedFile
from dynammo_core.support.errors import DataError, DynammoError, MemoryStoreError
from dynammo_core.support.processes import usable_cores
from dynammo_core.support.terminal import Terminal

CACHE_VARIABLE = "DYNAMMO_CACHE"
SETTLED_NANOSECONDS = 2 * 10**9
"""A file that changed less than this before it was read may change again within one tick of the disk's clock."""
MANY = 2000
"""Files from which on reading them takes long enough to show a progress bar."""
logger = logging.getLogger("dynammo.data")


@dataclass(frozen=True)
class HashCache:
    """A folder that keeps the SHA-256 of files from one opening of the data to the next.

    Attributes:
        folder: where it lies.
        key: encrypts it; None for plain files with a checksum.
    """

    folder: Path
    key: bytes | None = field(default=None, repr=False)

    def file(self, data: str) -> SealedFile:
        """Return the file for one data set, told apart by its root or manifest."""
        name = hashlib.sha256(data.encode("utf-8", "surrogateescape")).hexdigest()[:32]
        return SealedFile(self.folder / f"{name}.sealed", {"content": "index", "name": name}, self.key)

    def discard(self) -> None:
        """Delete what is kept: the names of files may tell of records that were withdrawn.

        Raises:
            MemoryStoreError: a file cannot be deleted.
        """
        discard(self.folder.glob("*.sealed"), "index")


class Content(NamedTuple):
    """The SHA-256 of a file's bytes, and of the patient that they name (see `patient_of`), if they are DICOM."""

    sha256: str
    patient: str | None


class _Known(NamedTuple):
    size: int
    changed: int
    sha256: str
    patient: str | None


_cache: ContextVar[HashCache | None] = ContextVar("hash cache", default=None)


def cache_folder(content: str) -> Path:
    """Return the folder of this user in which a simulation keeps what it could compute again.

    It is a folder in `$DYNAMMO_CACHE`, or without that variable in `~/.cache/dynammo`.
    """
    return Path(os.environ.get(CACHE_VARIABLE) or DEFAULT_HOME).expanduser() / content


@contextmanager
def hashes_kept_in(cache: HashCache | None) -> Iterator[None]:
    """Keep the hashes of files that are indexed inside in a cache; None for this user's own."""
    token = _cache.set(cache)
    try:
        yield
    finally:
        _cache.reset(token)


def file_contents(paths: Sequence[Path], places: Sequence[str], data: str) -> tuple[Content, ...]:
    """Return the content of each file, from the cache if its size and time of change are as they were.

    Args:
        paths: the files.
        places: where each was named, for messages, or empty.
        data: root or manifest of the data set, which names its part of the cache.

    Raises:
        DataError: a file is missing, empty, or cannot be read, or is DICOM and there is no library to read it.
    """
    file = (_cache.get() or HashCache(cache_folder("index"))).file(data)
    known = _read(file)
    stats = [_stat(path, place) for path, place in zip(paths, places, strict=True)]
    _refuse_empty(paths, places, stats)
    found = [known.get(str(path)) for path in paths]
    changed = [
        index
        for index, (one, stat) in enumerate(zip(found, stats, strict=True))
        if one is None or (one.size, one.changed) != (stat.st_size, stat.st_mtime_ns)
    ]
    now = time.time_ns()
    for index, content in zip(changed, _contents([(paths[i], places[i]) for i in changed]), strict=True):
        found[index] = _Known(stats[index].st_size, stats[index].st_mtime_ns, *content)
    contents = [one for one in found if one is not None]
    settled = {
        str(path): one for path, one in zip(paths, contents, strict=True) if now - one.changed > SETTLED_NANOSECONDS
    }
    if any(str(paths[index]) in settled for index in changed):
        _write(file, settled)
    return tuple(Content(one.sha256, one.patient) for one in contents)


def _contents(files: Sequence[tuple[Path, str]]) -> Iterator[Content]:
    """Read files on all cores, in their order; many of them with a progress bar, if somebody looks on."""
    console = Terminal(stderr=True)
    silent = len(files) < MANY or not console.is_terminal
    with ThreadPoolExecutor(usable_cores()) as pool:
        contents = pool.map(_content, files)
        yield from track(contents, "Reading images", total=len(files), console=console, transient=True, disable=silent)


def _content(file: tuple[Path, str]) -> Content:
    with _naming(*file), file[0].open("rb") as opened:
        sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
    with reporting(*file):
        return Content(sha256, patient_of(file[0]))


def _stat(path: Path, place: str) -> os.stat_result:
    with _naming(path, place):
        return path.stat()


def _refuse_empty(paths: Sequence[Path], places: Sequence[str], stats: Sequence[os.stat_result]) -> None:
    empty = [index for index, stat in enumerate(stats) if not stat.st_size]
    if empty:
        first = named(paths[empty[0]], places[empty[0]])
        raise DataError(
            f"{len(empty)} image files are empty (0 bytes); the first is {first}",
            remedy="Copy them again from where they came, or take them out of the data set",
        )


def _read(file: SealedFile) -> dict[str, _Known]:
    try:
        plain = file.read_as("index", lambda content: dict(json.loads(bytes(content)))) or {}
        return {name: _Known(*known) for name, known in plain.items()}
    except MemoryStoreError as error:
        logger.warning("all image files are read again: %s", error)
    except TypeError:
        logger.warning("all image files are read again: what is known of them was kept by another version")
    return {}


def _write(file: SealedFile, known: dict[str, _Known]) -> None:
    """Keep hashes; if they cannot be kept, that costs time at the next opening, and nothing else."""
    try:
        file.write(json.dumps(known).encode())
    except (DynammoError, OSError) as error:
        logger.warning("the hashes of image files are not kept: %s", error)


@contextmanager
def _naming(path: Path, place: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        raise DataError(
            f"the image {named(path, place)} cannot be opened: {getattr(error, 'strerror', None) or error}",
            remedy="Put the file there, permit reading it, or take it out of the data set",
        ) from error
