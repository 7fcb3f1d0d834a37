"""Locks that one process holds at a time; they end when the process ends, even if it is killed."""

from __future__ import annotations

import fcntl
import io
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dynammo_core.support.errors import CheckpointError, DynammoError


@contextmanager
def only_holder(path: Path, refusal: Callable[[str], DynammoError]) -> Iterator[None]:
    """Hold a lock file, which exists while it is held; refuse at once if another process holds it.

    Args:
        path: the lock file; its folder is made if it is missing.
        refusal: turns a description of the holder, `process 41 on gpu-2 since 2026-05-01 09:30:00`, into an error.

    Raises:
        DynammoError: another process holds the lock; this is what `refusal` returned.
        CheckpointError: the file cannot be written, or its disk knows no locks.
    """
    try:
        file = _locked(path)
    except BlockingIOError:
        raise refusal(_holder(path) or "another process") from None
    except OSError as error:
        raise _cannot_lock(path, error) from error
    with file:
        try:
            _sign(path, file)
            yield
        finally:
            path.unlink(missing_ok=True)  # before the lock falls: afterwards it may be another holder's


def _locked(path: Path) -> io.FileIO:
    """Open and lock a file; one that its last holder takes away meanwhile is opened anew."""
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        file = io.FileIO(path, "a")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_there(path, file):
                return file
        except BaseException:
            file.close()
            raise
        file.close()


def _sign(path: Path, file: io.FileIO) -> None:
    words = f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n"
    try:
        file.truncate(0)
        file.write(words.encode())
    except OSError as error:
        raise _cannot_lock(path, error) from error


def _holder(path: Path) -> str:
    with suppress(OSError):
        return path.read_text(encoding="utf-8").strip()
    return ""


def _is_there(path: Path, file: io.FileIO) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _cannot_lock(path: Path, error: OSError) -> CheckpointError:
    return CheckpointError(
        f"cannot write {path}: {error.strerror or error}",
        remedy="Free disk space or permit writing there, or take a folder on a disk that knows locks",
    )
