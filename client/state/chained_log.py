"""Lines of JSON that only grow: each ends in a hash over itself and the line before, so that no change goes unnoticed.

The hashes need no key, so they hold against accidents and small lies, not against someone who writes the whole file
anew. What they cannot show is a loss of the last lines: for that, keep the last hash somewhere else.
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
    """A line that is as it was written: its number from 1, what it says, and the hash at its end."""

    number: int
    fields: dict[str, Any]
    link: str


class Chain(NamedTuple):
    """A log of which every line is as it was written.

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
        """The whole lines, without those by which `append` closed a line that was cut off."""
        return tuple(entry for entry in self.whole if CUT_OFF not in entry.fields)

    @property
    def last_link(self) -> str:
        """The hash at the end of the last whole line."""
        return self.whole[-1].link if self.whole else ""


def chain_line(fields: Mapping[str, Any], before: bytes) -> bytes:
    """The line that says `fields` after the line `before`, which is empty for the first."""
    link = hashlib.sha256(before + json.dumps(fields).encode()).hexdigest()
    return json.dumps({**fields, LINK: link}).encode() + b"\n"


def read_line(line: bytes, before: bytes) -> Entry | None:
    """What a line says (its number is left 0); None if it is not as `chain_line` wrote it after the line `before`."""
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
        raise ValueError(f"line {broken[0]} is not as it was written after the line before")
    return Chain(tuple(whole), len(lines), (*cut_off, *broken), open_end)


def append(path: Path, entries: Sequence[Mapping[str, Any]]) -> None:
    """Add lines to a log, of mode 0600, all or none; on the disk when this returns. Waits for others who append.

    A line that a crash cut off stays as it is: it is ended, and a line after it says that it was cut off. Without
    entries this only tries whether the log can be opened.

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
    """The last line, or nothing; and instead what follows the last whole line, if the file ends within a line.

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
