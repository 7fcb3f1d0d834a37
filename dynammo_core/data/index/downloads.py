"""Downloads that are complete or leave nothing: into a temporary folder first, with a timeout per connection."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

TIMEOUT_SECONDS = 20.0


def download_into(root: Path, files: Mapping[str, str], fetch: Callable[[Path], object]) -> None:
    """Download files into `root`, each complete; two processes that do so at the same time do not disturb each other.

    Args:
        root: the folder they belong to; created if missing.
        files: the path of each file under `root`, and its path where `fetch` leaves it.
        fetch: downloads into the folder that it is given.

    Raises:
        OSError: a file cannot be fetched or written; `fetch` may raise other errors.
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
    """Limit how long sockets wait: torchvision sets no timeout, and behind some firewalls would hang for minutes."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
