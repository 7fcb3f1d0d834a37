"""Downloads that end whole or not at all: into a folder of their own first, and no connection waits for ever."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

TIMEOUT_SECONDS = 20.0


def download_into(root: Path, files: Mapping[str, str], fetch: Callable[[Path], object]) -> None:
    """Put files into `root`, each of them whole; two processes that do so at a time do not disturb one another.

    Args:
        root: the folder they belong to; it is made.
        files: the path of each file under `root`, and its path where `fetch` leaves it.
        fetch: downloads into the folder that it is given.

    Raises:
        OSError: a file cannot be fetched or written; and what else `fetch` raises.
    """
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root, prefix=".download-") as temporary, _socket_timeout(TIMEOUT_SECONDS):
        fetch(Path(temporary))
        for target, fetched in files.items():
            with (Path(temporary) / fetched).open("rb") as written:
                os.fsync(written.fileno())
            (root / target).parent.mkdir(parents=True, exist_ok=True)
            (Path(temporary) / fetched).replace(root / target)


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    """torchvision passes no timeout: behind a firewall that drops packets the download would hang for minutes."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
