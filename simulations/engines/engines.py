"""Two ways to run the same apps: in this process, and through `flwr run`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from client.app import app as client_app
from dynammo_core.configuration.config import Config, Scalar
from dynammo_core.experiment import Experiment
from dynammo_core.support.errors import ConfigError, unknown_name
from server.consortium.flower_app import APP_DIRECTORY
from server.run.run import run_and_report
from server.run_directory.directory import Listener, RunDirectory, run_place
from server.run_directory.event_tail import EventTail
from server.run_directory.lock import only_run, only_start
from simulations.engines.flower_engine import run_flower
from simulations.engines.local_grid import LocalGrid


class Engine(Protocol):
    """A way to run an experiment."""

    def __call__(
        self,
        config: Config[Any],
        runs: Path,
        resume: Path | None,
        listener: Listener,
        /,
        *,
        accept_new_code: bool = False,
    ) -> Path:
        """Run it, or go on with the run in the directory `resume`; returns the run directory."""
        ...


def run_local(
    config: Config[Any], runs: Path, resume: Path | None, listener: Listener, *, accept_new_code: bool = False
) -> Path:
    """Run every site in this process, one after the other, without Ray or a SuperLink; returns the run directory.

    Raises:
        DynammoError: the run cannot go on.
    """
    grid = LocalGrid(client_app, nodes=config.federation.sites, run_config={})
    return run_and_report(
        grid, config, runs=runs, resume=resume, accept_new_code=accept_new_code, listeners=[listener]
    ).path


def run_by_flower(
    config: Config[Any],
    runs: Path,
    resume: Path | None,
    listener: Listener,
    *,
    accept_new_code: bool = False,
    ray: str | None = None,
) -> Path:
    """Run by `flwr run` in Flower's simulation, following the event log for the display; returns the run directory.

    With `ray`, the sites work on the nodes of the Ray cluster at this address, which share the folder `runs`.

    Raises:
        DynammoError: the configuration cannot work, or Flower's run failed.
    """
    Experiment(config).check()
    directory = run_place(runs, config, resume)
    with only_start(directory):
        with only_run(directory):  # which Flower's process then takes over
            if resume is None:
                RunDirectory.create(runs, config)
        tail = EventTail(directory / "events.jsonl", from_end=resume is not None)
        run_config: Mapping[str, Scalar] = {
            "config": str((directory / "config.yaml").resolve()),
            "runs": str(directory.parent.resolve()),
            "resume": str(resume.resolve()) if resume else "",
            "accept-new-code": "yes" if accept_new_code else "",
        }
        run_flower(
            APP_DIRECTORY,
            nodes=config.federation.sites,
            run_config=run_config,
            on_output=None,
            on_poll=lambda: tail.feed(listener),
            log_file=directory / "flower.log",
            ray=ray,
        )
        tail.feed(listener)
    return directory


ENGINES: Mapping[str, Engine] = MappingProxyType({"local": run_local, "flower": run_by_flower})


def find_engine(name: str) -> Engine:
    """Return the engine of a name.

    Raises:
        ConfigError: there is no such engine.
    """
    if name not in ENGINES:
        raise ConfigError(unknown_name("engine", name, ENGINES), accepted=", ".join(ENGINES))
    return ENGINES[name]
