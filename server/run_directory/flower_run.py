"""`flower_run.json`: which run of Flower, of which consortium, a directory holds; the run writes it as it begins."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dynammo_core.support.errors import ConfigError
from server.run_directory.directory import Event, Listener, RunDirectory

FLOWER_RUN = "flower_run.json"


@contextmanager
def noting(directory: Path, run: int, consortium: str) -> Iterator[Listener]:
    """Yield a listener that writes the file at the run's first event, with what was warned of while the block is open.

    Args:
        directory: of the run, which need not exist before its first event.
        run: Flower's id of it.
        consortium: folder of the consortium; empty for a simulation, of which nothing is written.
    """
    heard, every = _Warnings(logging.WARNING), logging.getLogger()

    def listen(_: Event) -> None:
        if heard in every.handlers:
            every.removeHandler(heard)
            notes = {"run-id": run, "consortium": consortium, "warnings": heard.texts}
            RunDirectory(directory).write_json(FLOWER_RUN, notes)

    if consortium:
        every.addHandler(heard)
    try:
        yield listen
    finally:
        every.removeHandler(heard)


def notes_of(directory: Path) -> dict[str, Any]:
    """Return the content of a directory's file; empty if there is none that can be read."""
    try:
        notes = json.loads((directory / FLOWER_RUN).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return notes if isinstance(notes, dict) else {}


def noted_run(directory: Path) -> int | None:
    """Return Flower's id of the run in a run directory; None if it names none."""
    run = notes_of(directory).get("run-id")
    return run if type(run) is int else None


def flower_run(directory: Path) -> int:
    """Return Flower's id of the run in a run directory.

    Raises:
        ConfigError: no run was submitted from there.
    """
    if (run := noted_run(directory)) is not None:
        return run
    why = f"its {FLOWER_RUN} names no run" if (directory / FLOWER_RUN).exists() else f"it has no {FLOWER_RUN}"
    raise ConfigError(
        f"{directory} is not the run directory of a consortium's run "
        f"({why if directory.is_dir() else 'there is no such folder'})",
        accepted="runs/NAME-HASH",
    )


class _Warnings(logging.Handler):
    """Keeps what this project warns of."""

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.startswith("dynammo."):
            self.texts.append(record.getMessage())
