"""kill -9 as soon as each stage has started, then --resume: the same results, bit for bit, as if nothing had been."""

from __future__ import annotations

import os
import signal
from multiprocessing.context import ForkServerContext
from pathlib import Path
from unittest.mock import patch

import pytest
import yaml
from click.testing import Result
from small_runs import Finished, Outcome, events, small_settings
from typer.testing import CliRunner

from server.run_directory.directory import RunDirectory
from simulations.cli import app

STAGES = (
    *("adapt", "remember", "evaluate"),  # weights move, exemplars are written, results are
    *(pytest.param(stage, marks=pytest.mark.soak) for stage in ("recalibrate", "balance")),
)


def invoke(*words: str | Path) -> Result:
    return CliRunner().invoke(app, list(map(str, words)))


def killed_in(stage: str, *words: str | Path) -> None:
    """Invoke the command in a process that the system kills as soon as the second task's `stage` has started."""
    logged = RunDirectory.log

    def log(directory: RunDirectory, event: str, **fields: object) -> None:
        logged(directory, event, **fields)
        if event == "step_started" and (fields["task"], fields["stage"]) == (1, stage):
            os.kill(os.getpid(), signal.SIGKILL)

    with patch.object(RunDirectory, "log", log):
        invoke(*words)


@pytest.mark.parametrize("stage", STAGES)
def test_a_killed_run_resumes_to_the_same_bits(
    tmp_path: Path, stage: str, finished: Finished, preloaded: ForkServerContext
) -> None:
    config, runs = tmp_path / "small.yaml", tmp_path / "runs"
    config.write_text(yaml.safe_dump(small_settings()))
    process = preloaded.Process(target=killed_in, args=(stage, "run", config, "--runs", runs))
    process.start()
    process.join(timeout=120)
    assert process.exitcode == -signal.SIGKILL
    (directory,) = runs.glob("small-*")
    last = events(directory)[-1]
    assert (last["event"], last["task"], last["stage"]) == ("step_started", 1, stage)

    resumed = invoke("run", config, "--runs", runs, "--resume", directory)
    assert resumed.exit_code == 0, resumed.output
    assert Outcome.of(directory) == finished("dynammo").outcome
