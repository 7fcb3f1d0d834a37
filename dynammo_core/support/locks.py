"""Locks that one process holds at a time, and that end with it, however it ends."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from dynammo_core.support.errors import CheckpointError, DynammoError


@contextmanager
def only_holder(path: Path, refusal: Callable[[str], DynammoError]) -> Iterator[None]:
    """Hold a lock file, which is there as long as it is held; never wait for another process that holds it.

    Args:
        path: the lock file, in a folder that is made if it is missing.
        refusal: makes the error to raise from words on who holds it: `process 41 on gpu-2 since 2026-05-01 09:30:00`.

    Raises:
        DynammoError: another process holds it: what `refusal` made.
        CheckpointError: the file cannot be written, or its disk knows no locks.
    """
    with _locked(path, refusal) as file:
        try:
            since = time.strftime("%Y-%m-%d %H:%M:%S")
            print(f"process {os.getpid()} on {socket.gethostname()} since {since}", file=file, flush=True)
            yield
        finally:
            path.unlink(missing_ok=True)  # before the lock falls: afterwards it may be another holder's


def _locked(path: Path, refusal: Callable[[str], DynammoError]) -> IO[str]:
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("a+", encoding="utf-8")
        except OSError as error:
            raise _cannot_lock(path, error) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_there(path, file):
                file.truncate(0)
                return file
            file.close()  # whoever held it has taken the file away meanwhile
        except BlockingIOError:
            with file:
                file.seek(0)
                raise refusal(file.read().strip() or "another process") from None
        except OSError as error:
            file.close()
            raise _cannot_lock(path, error) from error


def _is_there(path: Path, file: IO[str]) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _cannot_lock(path: Path, error: OSError) -> CheckpointError:
    return CheckpointError(
        f"cannot lock {path}: {error.strerror or error}",
        remedy="Permit writing there, or take a folder on a disk that knows locks",
    )
