"""Write the files of a run: configuration, events, checkpoint, metrics and the deployable model."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from dynammo_core.configuration.config import Config
from dynammo_core.support.csv_text import csv_table
from dynammo_core.support.errors import CheckpointError
from dynammo_core.support.files import write_atomically

EVENTS = "events.jsonl"
LATEST = "latest.safetensors"
AGAIN = "continue with --resume, or start again if no round was finished"
"""What to do with an interrupted run, whichever command started it."""
Event = dict[str, Any]
Listener = Callable[[Event], None]


class RunDirectory:
    """Name and write the files of one run; every file except the event log is replaced as a whole."""

    def __init__(self, path: Path, listeners: Iterable[Listener] = ()) -> None:
        self.path = path
        self.sites = path / "sites"
        self.checkpoints = path / "checkpoints"
        self._listeners = tuple(listeners)

    @staticmethod
    def create(runs: Path, config: Config[Any], listeners: Iterable[Listener] = ()) -> RunDirectory:
        """Make a fresh `<runs>/<name>-<hash>/`; one that holds an earlier run is moved aside, never deleted."""
        path = runs / config.run_name
        if (path / EVENTS).exists():
            move_aside(path)
        directory = RunDirectory(path, listeners)
        directory.write("config.yaml", config.to_yaml())
        return directory

    @property
    def can_resume(self) -> bool:
        """Return whether there is a checkpoint; the first finished round writes one."""
        return (self.checkpoints / LATEST).is_file()

    def write(self, name: str, content: str | bytes) -> None:
        """Write a file of the run, whole or not at all."""
        write_atomically(self.path / name, content if isinstance(content, bytes) else content.encode())

    def write_json(self, name: str, content: object) -> None:
        """Write `content` as indented JSON."""
        self.write(name, json.dumps(content, indent=2) + "\n")

    def write_csv(self, name: str, columns: list[str], rows: Iterable[Mapping[str, object]]) -> None:
        """Write rows as CSV below a header of `columns`; texts never become formulas there."""
        self.write(name, csv_table(columns, rows))

    def log(self, event: str, **fields: object) -> None:
        """Append one event to `events.jsonl` and tell the listeners.

        Raises:
            CheckpointError: the log cannot be written.
        """
        record = {"event": event, "time": round(time.time(), 3), **fields}
        line = (json.dumps(record) + "\n").encode()
        try:
            descriptor = os.open(self.path / EVENTS, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                before = os.fstat(descriptor).st_size
                if os.write(descriptor, line) < len(line):  # a full disk takes what still fits and says nothing
                    os.ftruncate(descriptor, before)
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            finally:
                os.close(descriptor)
        except OSError as error:
            raise CheckpointError(
                f"cannot write {self.path / EVENTS}: {error.strerror}",
                remedy=f"Free disk space or give write permission, then {AGAIN}",
            ) from error
        for listener in self._listeners:
            listener(record)


def run_place(runs: Path, config: Config[Any], resume: Path | None) -> Path:
    """Return the directory of a run: `resume`, or a new one in the folder `runs`.

    Raises:
        CheckpointError: there is no directory `resume`.
    """
    if resume is not None and not resume.is_dir():
        raise CheckpointError(
            f"the run directory {resume} does not exist",
            accepted="a directory that an earlier run made, such as runs/NAME-HASH",
        )
    return resume or runs / config.run_name


def move_aside(path: Path) -> None:
    """Rename a run directory to `free_place` of it."""
    path.rename(free_place(path))


def free_place(path: Path) -> Path:
    """Return the first of `<path>.1`, `<path>.2`, ... that is free."""
    number = 1
    while (aside := path.with_name(f"{path.name}.{number}")).exists():
        number += 1
    return aside
