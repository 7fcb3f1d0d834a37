"""Hashes of what files contain, noted beside what the file system says of them: unchanged files are not read again."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from dynammo_core.data.decoded.decoding import usable_cores
from dynammo_core.memory.sealed_file import SealedFile
from dynammo_core.support.errors import DynammoError, MemoryStoreError

SETTLED_SECONDS = 2
"""A file that changed later than this before it was read might change again under the same times."""
RENEWED_SECONDS = 12 * 60 * 60
"""Age of a note of use from which it is written anew."""
logger = logging.getLogger("dynammo.image_cache")


class _Note(NamedTuple):
    state: list[int] | None
    digest: str
    used: int


class ContentKeys:
    """Content keys of files, by path.

    Args:
        file: where they are noted.
        longest_unused: seconds after which what is noted of a file that nobody asks for is dropped; None: never.
    """

    def __init__(self, file: SealedFile, longest_unused: int | None) -> None:
        self._file = file
        self._longest_unused = longest_unused

    def of(self, paths: Sequence[Path]) -> list[str]:
        """Return the SHA-256 of each file's bytes, in hexadecimal digits; only files that are not noted are read.

        A file that cannot be read gets a key that no other has: whoever decodes it finds out.
        """
        noted, now = self._load(), int(time.time())
        names = [hashlib.sha256(os.fsencode(path)).hexdigest()[:32] for path in paths]
        states = [_state(path) for path in paths]
        known = [
            noted[name].digest if name in noted and noted[name].state == state else None
            for name, state in zip(names, states, strict=True)
        ]
        unread = [place for place, digest in enumerate(known) if digest is None]
        with ThreadPoolExecutor(usable_cores()) as pool:
            fresh = dict(zip(unread, pool.map(lambda place: _digest(paths[place]), unread), strict=True))
        digests = [fresh[place] if digest is None else digest for place, digest in enumerate(known)]
        old = any(noted[name].used < now - RENEWED_SECONDS for name in names if name in noted)
        for name, state, digest in zip(names, states, digests, strict=True):
            if state is not None and state[1] < (now - SETTLED_SECONDS) * 10**9:
                noted[name] = _Note(state, digest, now)
        if unread or old:
            self._save(noted, now)
        return digests

    def _save(self, noted: Mapping[str, _Note], now: int) -> None:
        oldest = 0 if self._longest_unused is None else now - self._longest_unused
        kept = {name: note for name, note in noted.items() if note.used >= oldest}
        try:
            self._file.write(json.dumps(kept).encode())
        except DynammoError as error:
            logger.warning("contents of files are not noted: %s", error)

    def _load(self) -> dict[str, _Note]:
        try:
            read = self._file.read_as(
                "set of notes", lambda content: {name: _Note(*note) for name, note in json.loads(content).items()}
            )
        except MemoryStoreError:
            return {}  # they are made again
        return read or {}


def _state(path: Path) -> list[int] | None:
    """Return what changes with a file's content, None if it is not there; nobody can set its second number back."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return [stat.st_size, stat.st_ctime_ns, stat.st_mtime_ns, stat.st_ino, stat.st_dev]


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return f"unreadable {secrets.token_hex(16)}"
