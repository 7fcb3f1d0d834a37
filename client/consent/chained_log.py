"""Append JSON lines that are chained: each ends in a hash over itself and the line before, so changes show.

The hashes need no key, so they detect accidents and edits, but not a rewrite of the whole file. They cannot show that
the last lines are missing: for that, keep the last hash somewhere else.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

from dynammo_core.support.files import sync_folder

LINK, CUT_OFF = "link", "cut_off"
_WHOLE = re.compile(rb'"link": "[0-9a-f]{64}"\}\n\Z')
_BLOCK = 2**16


class Entry(NamedTuple):
    """An unchanged line: its number from 1, its content, and the hash at its end."""

    number: int
    fields: dict[str, Any]
    link: str


class Chain(NamedTuple):
    """A log in which every line is unchanged.

    Attributes:
        whole: the lines that were not cut off.
        lines: number of all lines.
        cut_off: numbers of the lines that a crash cut off.
        open_end: the last line is one of them, and not closed yet.
    """

    whole: tuple[Entry, ...]
    lines: int
    cut_off: tuple[int, ...]
    open_end: bool

    @property
    def entries(self) -> tuple[Entry, ...]:
        """Return the complete lines, without those by which `append` closed an incomplete one."""
        return tuple(entry for entry in self.whole if CUT_OFF not in entry.fields)

    @property
    def last_link(self) -> str:
        """Return the hash at the end of the last complete line."""
        return self.whole[-1].link if self.whole else ""


def chain_line(fields: Mapping[str, Any], before: bytes) -> bytes:
    """Return the line that holds `fields` after the line `before`, which is empty for the first."""
    link = hashlib.sha256(before + json.dumps(fields).encode()).hexdigest()
    return json.dumps({**fields, LINK: link}).encode() + b"\n"


def read_line(line: bytes, before: bytes) -> Entry | None:
    """Read a line (its number stays 0); return None if `chain_line` did not write it after the line `before`."""
    try:
        fields = json.loads(line)
        link = fields.pop(LINK)
        return Entry(0, fields, link) if chain_line(fields, before) == line else None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def read_chain(content: bytes) -> Chain:
    """Read and check a log that `append` wrote.

    Raises:
        ValueError: a line was changed, removed, added or moved; it names the first that does not fit.
    """
    lines = BytesIO(content).readlines()
    open_end = bool(lines) and not lines[-1].endswith(b"\n")
    whole: list[Entry] = []
    cut_off, broken, before = list[int](), list[int](), b""
    for number, line in enumerate(lines, start=1):
        entry = read_line(line, before)
        before = line
        if entry is None:
            broken.append(number)
            continue
        if broken and entry.fields.get(CUT_OFF) != sum(len(lines[place - 1]) for place in broken):
            break
        cut_off += broken
        broken = []
        whole.append(entry._replace(number=number))
    if broken and not (open_end and broken == [len(lines)]):
        raise ValueError(f"line {broken[0]} does not follow from the line before it")
    return Chain(tuple(whole), len(lines), (*cut_off, *broken), open_end)


def append(path: Path, entries: Sequence[Mapping[str, Any]]) -> None:
    """Add lines to a log, of mode 0600, all or none; on the disk when this returns. Waits for others who append.

    A line that a crash truncated stays: it is ended, and the next line says that it is incomplete. Without entries
    this only checks that the log can be opened.

    Raises:
        OSError: the log cannot be written; it stays as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        size = os.fstat(handle).st_size
        before, cut = _tail(handle, size)
        content = b""
        if cut:
            before = BytesIO(cut).readlines()[-1] + b"\n"
            closing = chain_line({CUT_OFF: len(cut) + 1}, before)
            content, before = b"\n" + closing, closing
        for fields in entries:
            before = chain_line(fields, before)
            content += before
        if entries:
            _write_all(handle, content, size)
        if not size:
            sync_folder(path.parent)
    finally:
        os.close(handle)


def _tail(handle: int, size: int) -> tuple[bytes, bytes]:
    """Return the last line; or the last whole line and what follows it, if the file ends within a line.

    More than one line may follow: a crash can cut off the line by which an earlier one was to be closed.
    """
    length = _BLOCK
    while True:
        start = max(0, size - length)
        lines = BytesIO(os.pread(handle, size - start, start)).readlines()
        ended = not lines or lines[-1].endswith(b"\n")
        known = lines[1:] if start else lines  # the first may be the rest of a line
        if ended and (known or not start):
            return (known[-1] if known else b""), b""
        for place in reversed(range(len(known))):
            if _WHOLE.search(known[place]):
                return known[place], b"".join(known[place + 1 :])
        if not start:
            return b"", b"".join(known)
        length *= 4


def _write_all(handle: int, content: bytes, size: int) -> None:
    """Write at the end and sync; what cannot be written whole is taken back."""
    try:
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(handle, rest) :]
        os.fsync(handle)
    except OSError:
        os.ftruncate(handle, size)
        raise
