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
    """The most that was seen, in bytes; what processes share is counted once for each, in proportion."""

    bytes: int = 0


@contextmanager
def peak_memory() -> Iterator[Peak]:
    """The peak of this process and its descendants while the block runs; Linux only."""
    peak, done = Peak(), threading.Event()

    def watch() -> None:
        while not done.wait(SECONDS):
            peak.bytes = max(peak.bytes, sum(map(_proportional_set, process_tree(os.getpid()))))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()


def _proportional_set(process: int) -> int:
    """Bytes of a process, by `smaps_rollup`; 0 for one that has gone."""
    with suppress(OSError):
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


class Held(NamedTuple):
    """Bytes that a process holds now, and the most that it has held."""

    now: int
    peak: int


def own_memory() -> Held:
    """Of this process alone, exactly; Linux only."""
    text = Path("/proc/self/status").read_text()
    now, peak = (int(re.findall(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)[0]) for name in ("VmRSS", "VmHWM"))
    return Held(1024 * now, 1024 * peak)


def forget_peak() -> None:
    """The peak of `own_memory` counts from now on."""
    Path("/proc/self/clear_refs").write_text("5")
