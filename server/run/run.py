"""Run an experiment from start to end on any Flower grid: check, start or resume, and log how it ended."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from flwr.serverapp import Grid

from dynammo_core.configuration.config import Config
from dynammo_core.experiment import Experiment
from dynammo_core.support.errors import DynammoError
from server.report.report import write_report
from server.run.answers import TooFewAnswers
from server.run.exchange import Exchange
from server.run.task_loop import TaskLoop
from server.run_directory.directory import Listener, RunDirectory, run_place
from server.run_directory.lock import only_run


def run_and_report(
    grid: Grid,
    config: Config[Any],
    *,
    runs: Path,
    resume: Path | None,
    accept_new_code: bool = False,
    listeners: Iterable[Listener] = (),
) -> RunDirectory:
    """Run an experiment as `run_experiment` does, and write the report page."""
    return run_experiment(
        grid, config, runs=runs, resume=resume, accept_new_code=accept_new_code, listeners=listeners, report=True
    )


def run_experiment(
    grid: Grid,
    config: Config[Any],
    *,
    runs: Path,
    resume: Path | None,
    accept_new_code: bool = False,
    listeners: Iterable[Listener] = (),
    report: bool = False,
) -> RunDirectory:
    """Run an experiment, or continue the one in the directory `resume`.

    Args:
        grid: the sites.
        config: the experiment.
        runs: folder in which a new run makes its directory.
        resume: directory of an interrupted run; None starts a new run.
        accept_new_code: continue even if the code has changed.
        listeners: called with every event.
        report: write the report page at the end.

    Raises:
        RunError: another process works in this run directory, which stays as it is.
        DynammoError: the run cannot continue; the event log holds the same text.
    """
    experiment = Experiment(config)
    experiment.check()
    with only_run(run_place(runs, config, resume)):
        directory = RunDirectory(resume, listeners) if resume else RunDirectory.create(runs, config, listeners)
        exchange = Exchange(grid, config.federation)
        try:
            loop = TaskLoop(experiment, exchange, directory)
            if resume:
                loop.resume(accept_new_code=accept_new_code)
            loop.run()
        except DynammoError as error:
            _log_failure(directory, error)
            if report:
                with suppress(DynammoError):  # the run's own error matters more
                    write_report(directory.path)
            raise
        if report:
            write_report(directory.path)
    return directory


def _log_failure(directory: RunDirectory, error: DynammoError) -> None:
    """Log why a run ended; sites that failed are data beside the message."""
    if isinstance(error, TooFewAnswers):
        directory.log("run_failed", message=f"{error.what}.", failures=[vars(failure) for failure in error.failures])
    else:
        directory.log("run_failed", message=str(error), failures=[])
