"""Folders and files on a site's disk for their owner alone, changed by one process at a time."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from dynammo_core.support.errors import CheckpointError, MemoryStoreError
from dynammo_core.support.files import write_atomically

T = TypeVar("T")


def make_private(folder: Path) -> None:
    """Make a folder, and those above it that are missing, which their owner alone can enter.

    Raises:
        MemoryStoreError: it cannot be made, or belongs to another user.
    """
    try:
        for missing in reversed([place for place in (folder, *folder.parents) if not place.exists()]):
            missing.mkdir(mode=0o700, exist_ok=True)
        folder.chmod(0o700)
    except OSError as error:
        raise MemoryStoreError(
            f"the memory folder {folder} cannot be made private: {error.strerror}",
            remedy="Permit writing there, or name a folder of this user as memory.folder in site.yaml",
        ) from error


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Hold a folder against all others that ask for it by this function; wait until it is free.

    Raises:
        MemoryStoreError: it cannot be made, or its disk knows no locks.
    """
    make_private(folder)
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError as error:
            raise MemoryStoreError(
                f"the memory folder {folder} cannot be locked: {error.strerror}",
                remedy="Name a folder on a local disk as memory.folder in site.yaml",
            ) from error
        yield
    finally:
        os.close(handle)


def write_private(path: Path, content: bytes) -> None:
    """Replace a file as a whole, with mode 0600, in a folder that its owner alone can enter.

    Raises:
        MemoryStoreError: the folder cannot be made private.
        CheckpointError: the file cannot be written; what stood there stands there still.
    """
    make_private(path.parent)
    write_atomically(path, content, mode=0o600)


@dataclass(frozen=True)
class JsonFile:
    """A private file of JSON, replaced as a whole.

    Attributes:
        path: where it lies.
        name: what error messages call it, such as "the privacy ledger".
        remedy: what to do when it cannot be read.
        error: the class of that error.
        indent: spaces by which each level of the text is indented; None for a single line.
    """

    path: Path
    name: str
    remedy: str
    error: type[CheckpointError] | type[MemoryStoreError] = CheckpointError
    indent: int | None = None

    def read(self, parse: Callable[[Any], T]) -> T | None:
        """Return what `parse` makes of the content, or None if there is no file.

        Raises:
            CheckpointError or MemoryStoreError, as `error` says: the file cannot be read, or `parse` refuses it.
        """
        try:
            return parse(json.loads(self.path.read_bytes()))
        except FileNotFoundError:
            return None
        except (OSError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise self.error(
                f"{self.name} {self.path} cannot be read ({type(error).__name__}: {error})", remedy=self.remedy
            ) from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from changing the file inside: for those who read it, change it and write it."""
        with locked_folder(self.path.parent):
            yield

    def write(self, content: Any) -> None:
        """Replace the file; inside `locked`.

        Raises:
            CheckpointError: it cannot be written; what stood there stands there still.
        """
        write_private(self.path, json.dumps(content, indent=self.indent).encode())


def discard(paths: Iterable[Path], content: str) -> None:
    """Delete files that hold nothing which could not be computed again.

    Args:
        paths: the files; those that are gone already are passed over.
        content: what they hold, for messages.

    Raises:
        MemoryStoreError: a file cannot be deleted.
    """
    for path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise MemoryStoreError(
                f"{path} ({content}) cannot be deleted: {error.strerror}", remedy="Delete the file by hand"
            ) from error
