"""Two ways to run the same apps: in this process, and through `flwr run`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, TextIO

from client.app import app as client_app
from dynammo_core.config import Config, Scalar
from dynammo_core.experiment import Experiment
from server.run import run_and_report
from server.run_directory import Listener, RunDirectory
from simulations.flower_engine import run_flower
from simulations.local_grid import LocalGrid

APP_DIRECTORY = Path(__file__).resolve().parent.parent
Engine = Callable[[Config[Any], Path, Path | None, Listener], Path]


def run_local(config: Config[Any], runs: Path, resume: Path | None, listener: Listener) -> Path:
    """Run every site in this process, one after the other, without Ray or a SuperLink; returns the run directory.

    Raises:
        DynammoError: the run cannot go on.
    """
    grid = LocalGrid(client_app, nodes=config.federation.sites, run_config={})
    return run_and_report(grid, config, runs=runs, resume=resume, listeners=[listener]).path


def run_by_flower(config: Config[Any], runs: Path, resume: Path | None, listener: Listener) -> Path:
    """Run by `flwr run` in Flower's simulation, following the event log for the display; returns the run directory.

    Raises:
        DynammoError: the configuration cannot work, or Flower's run failed.
    """
    Experiment(config).check()
    directory = resume or RunDirectory.create(runs, config).path
    tail = EventTail(directory / "events.jsonl", from_end=resume is not None)
    run_config: Mapping[str, Scalar] = {
        "config": str((directory / "config.yaml").resolve()),
        "runs": str(directory.parent.resolve()),
        "resume": str(resume.resolve()) if resume else "",
    }
    run_flower(
        APP_DIRECTORY,
        nodes=config.federation.sites,
        run_config=run_config,
        on_output=None,
        on_poll=lambda: tail.feed(listener),
        log_file=directory / "flower.log",
    )
    tail.feed(listener)
    return directory


ENGINES: Mapping[str, Engine] = MappingProxyType({"local": run_local, "flower": run_by_flower})


class EventTail:
    """Reads the events that another process appends to a run's log."""

    def __init__(self, path: Path, *, from_end: bool) -> None:
        self._path = path
        self._position = path.stat().st_size if from_end and path.exists() else 0

    def feed(self, listener: Listener) -> None:
        """Tell the listener every event since the last call."""
        if self._path.exists():
            with self._path.open(encoding="utf-8") as file:
                file.seek(self._position)
                for event in _whole_lines(file):
                    listener(event)
                self._position = file.tell()


def _whole_lines(file: TextIO) -> Iterator[dict[str, Any]]:
    """The events of all complete lines; a line still being written is left for the next time."""
    while True:
        start = file.tell()
        line = file.readline()
        if not line.endswith("\n"):
            file.seek(start)
            return
        yield json.loads(line)
