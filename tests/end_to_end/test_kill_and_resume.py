"""kill -9 in the middle of each stage, then --resume: the same results, bit for bit, as if nothing had happened."""

from __future__ import annotations

import json
import os
import signal
import time
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

import pytest
import yaml
from click.testing import Result
from small_runs import Finished, Outcome, events, small_settings
from typer.testing import CliRunner

from simulations.cli import app

STAGES = (
    *("adapt", "remember", "evaluate"),  # weights move, exemplars are written, results are
    *(pytest.param(stage, marks=pytest.mark.soak) for stage in ("recalibrate", "balance")),
)


def invoke(*words: str | Path) -> Result:
    return CliRunner().invoke(app, list(map(str, words)))


@pytest.mark.parametrize("stage", STAGES)
def test_a_killed_run_resumes_to_the_same_bits(
    tmp_path: Path, stage: str, finished: Finished, preloaded: ForkServerContext
) -> None:
    config, runs = tmp_path / "small.yaml", tmp_path / "runs"
    config.write_text(yaml.safe_dump(small_settings()))
    process = preloaded.Process(target=invoke, args=("run", config, "--runs", runs))
    process.start()
    last = _kill_in(process, runs, stage)
    assert last["stage"] == stage
    (directory,) = runs.glob("small-*")
    assert "run_finished" not in {event["event"] for event in events(directory)}

    resumed = invoke("run", config, "--runs", runs, "--resume", directory)
    assert resumed.exit_code == 0, resumed.output
    assert Outcome.of(directory) == finished("dynammo").outcome


def _kill_in(process: ForkServerProcess, runs: Path, stage: str) -> dict[str, object]:
    """Kill the process once the second task's `stage` has started; returns the last step that it started."""
    assert process.pid is not None
    limit = time.monotonic() + 120
    while time.monotonic() < limit:
        assert process.is_alive(), "the run ended before it could be killed"
        started = [line for file in runs.glob("*/events.jsonl") for line in _started(file)]
        if started and (started[-1]["task"], started[-1]["stage"]) == (1, stage):
            # Stopped at once, so that the step cannot end between the look and the kill.
            os.kill(process.pid, signal.SIGSTOP)
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            return started[-1]
        time.sleep(0.002)
    raise AssertionError(f"the stage {stage} did not start")


def _started(file: Path) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return [line for line in lines if line["event"] == "step_started"]
