"""Watch the runs of a consortium: their files as they change, and from time to time Flower's own status."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from shutil import disk_usage
from typing import Any

from rich.filesize import decimal

from dynammo_core.support.errors import DynammoError
from server.consortium.launch import ASK_SECONDS
from server.run_directory.directory import EVENTS
from server.run_directory.flower_run import FLOWER_RUN, flower_run
from server.watch.status import RunStatus

SCARCE_BYTES = 5 * 10**9
"""Free room below which the disk of the runs is warned of: some checkpoints and models of large networks."""


@dataclass(frozen=True)
class Overview:
    """Runs at one moment.

    Attributes:
        runs: the runs, the most recently heard of first.
        silence: why the SuperLink could not be asked about unfinished runs; empty if it answered or was not asked.
        free_bytes: free room on the disk of the runs; None if it was not looked at.
    """

    runs: list[RunStatus]
    silence: str = ""
    free_bytes: int | None = None

    @property
    def current(self) -> list[RunStatus]:
        """Return the runs without those that were replaced: `skin-1.2` is an earlier attempt at `skin-1`."""
        names = {run.directory.name for run in self.runs}
        return [run for run in self.runs if run.directory.name.rpartition(".")[0] not in names]

    @property
    def warnings(self) -> list[str]:
        """Return what an operator should see to before it stops a run."""
        words = [f"This shows only what the files say: {self.silence}"] if self.silence else []
        if self.free_bytes is not None and self.free_bytes < SCARCE_BYTES:
            free = decimal(self.free_bytes)
            words.append(f"The disk of the runs has only {free} left: free room, or a step cannot be saved.")
        return words

    def as_fields(self, now: float) -> dict[str, Any]:
        """Return the fields for JSON."""
        return {
            "time": now,
            "superlink_silence": self.silence,
            "disk_free_bytes": self.free_bytes,
            "runs": [run.as_fields(now) for run in self.runs],
        }


@dataclass(frozen=True)
class _Word:
    """What the SuperLink last said: when it was asked, and the status of each run by Flower's id."""

    asked: float = 0.0
    statuses: Mapping[int, str] | None = None
    silence: str = ""


class Lookout:
    """Look at runs as often as wanted, from any thread: files are read again only if they have changed.

    Args:
        directories: finds the directories of the runs.
        flower_runs: asks the SuperLink for its runs, as `Control.runs` does. It takes seconds: only the first look
            waits for it, and only if some run's log has no end.
        runs: a folder on the disk of the runs, whose room is watched.
    """

    def __init__(
        self,
        directories: Callable[[], Iterable[Path]],
        flower_runs: Callable[[], Mapping[int, tuple[str, str]]],
        runs: Path | None = None,
    ) -> None:
        self._folder = runs
        self._directories = directories
        self._flower_runs = flower_runs
        self._word: _Word | None = None
        self._asking: threading.Thread | None = None
        self._read: dict[Path, tuple[object, RunStatus]] = {}
        self._lock = threading.Lock()

    def look(self) -> Overview:
        """Return the current state of all runs."""
        with self._lock:
            runs = self._runs()
            if not any(run.goes_on and run.submitted for run in runs):
                return Overview(runs, free_bytes=self._free_bytes())
            if self._word is None:
                self._ask()
                runs = self._runs()  # once more after the question: a run may have ended, and said so, meanwhile
            elif time.time() - self._word.asked > ASK_SECONDS and not (self._asking and self._asking.is_alive()):
                self._asking = threading.Thread(target=self._ask, daemon=True)
                self._asking.start()
            return Overview(runs, self._word.silence if self._word else "", self._free_bytes())

    def _free_bytes(self) -> int | None:
        return disk_usage(self._folder).free if self._folder and self._folder.is_dir() else None

    def _ask(self) -> None:
        asked = time.time()
        try:
            statuses = {run: status for run, (status, _) in self._flower_runs().items()}
            self._word = _Word(asked, statuses)
        except DynammoError as error:
            self._word = _Word(asked, silence=str(error))

    def _runs(self) -> list[RunStatus]:
        word = self._word or _Word()
        self._read = {directory: self._run(directory, word) for directory in self._directories()}
        runs = [run for _, run in self._read.values()]
        return sorted(runs, key=lambda run: (-(run.heard or run.submitted or 0.0), run.directory.name))

    def _run(self, directory: Path, word: _Word) -> tuple[object, RunStatus]:
        """Return a run with the state of its files; while these do not change, the run is not read again."""
        log, submitted = _signature(directory / EVENTS), _signature(directory / FLOWER_RUN)
        flower = _flower_status(directory, submitted[0] if submitted else None, word)
        made_from = (log, submitted, flower)
        known = self._read.get(directory)
        if known and known[0] == made_from:
            return known
        try:
            return made_from, RunStatus.read(directory, submitted=submitted and submitted[0], flower=flower)
        except DynammoError as error:
            return made_from, RunStatus.unreadable(directory, str(error))


def run_directories(runs: Path) -> list[Path]:
    """Return the directories of runs in a folder, which need not exist yet."""
    return [path for path in sorted(runs.glob("*")) if any((path / name).is_file() for name in (EVENTS, "config.yaml"))]


def _flower_status(directory: Path, submitted: float | None, word: _Word) -> str | None:
    """Return Flower's status of a run; one submitted after Flower was asked may be unknown to it."""
    if submitted is None or word.statuses is None:
        return None
    try:
        status = word.statuses.get(flower_run(directory))
    except DynammoError:
        return None
    return "finished:unknown" if status is None and submitted < word.asked else status


def _signature(path: Path) -> tuple[float, int] | None:
    """Return a file's time of last change in unix seconds and its bytes, or None if there is no file."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime, stat.st_size
