"""How much memory a process and all that it started take together, watched while they work."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from dynammo_core.support.processes import process_tree

SECONDS = 0.5


@dataclass
class Peak:
    """The most that was seen, in bytes; what processes share is counted once for each, in proportion.

    Attributes:
        bytes: all that is in memory.
        anonymous: without what is there of files, which the system may drop whenever it wants room.
    """

    bytes: int = 0
    anonymous: int = 0


@contextmanager
def peak_memory() -> Iterator[Peak]:
    """Watch the peak memory of this process and its descendants while the block runs; Linux only."""
    peak, done = Peak(), threading.Event()

    def watch() -> None:
        while not done.wait(SECONDS):
            sets = [held_by(process) for process in process_tree(os.getpid())]
            peak.bytes = max(peak.bytes, sum(held.proportional for held in sets))
            peak.anonymous = max(peak.anonymous, sum(held.anonymous for held in sets))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()


class Held(NamedTuple):
    """Bytes of a process: resident, the same with what it shares in proportion, and of that what is of no file."""

    resident: int
    proportional: int
    anonymous: int


def held_by(process: int) -> Held:
    """Return the bytes of a process, by `smaps_rollup`; none for one that has gone."""
    with suppress(OSError):
        text = Path(f"/proc/{process}/smaps_rollup").read_text()
        found = dict(re.findall(r"^(\w+):\s+(\d+) kB", text, re.MULTILINE))
        return Held(*(1024 * int(found[name]) for name in ("Rss", "Pss", "Pss_Anon")))
    return Held(0, 0, 0)


class ProcessMemory(NamedTuple):
    """Bytes that a process holds now, and the most that it has held."""

    now: int
    peak: int


def own_memory() -> ProcessMemory:
    """Return what this process alone holds, exactly; Linux only."""
    text = Path("/proc/self/status").read_text()
    now, peak = (int(re.findall(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)[0]) for name in ("VmRSS", "VmHWM"))
    return ProcessMemory(1024 * now, 1024 * peak)


def forget_peak() -> None:
    """Let the peak of `own_memory` count from now on."""
    Path("/proc/self/clear_refs").write_text("5")
