"""kill -9 in the middle of each stage, then --resume: the same results, bit for bit, as if nothing had happened."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from small_runs import Outcome, events, small_settings

COMMAND = (str(Path(sys.executable).with_name("dynammo-sim")),)
STAGES = ("adapt", "recalibrate", "balance", "remember", "evaluate")


def write_config(folder: Path) -> Path:
    file = folder / "small.yaml"
    file.write_text(yaml.safe_dump(small_settings()))
    return file


def command_line(*arguments: str | Path) -> list[str]:
    return [*COMMAND, *map(str, arguments)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    folder = tmp_path_factory.mktemp("undisturbed")
    subprocess.run(command_line("run", write_config(folder), "--runs", folder / "runs"), check=True)
    (directory,) = (folder / "runs").iterdir()
    return Outcome.of(directory)


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_a_killed_run_resumes_to_the_same_bits(tmp_path: Path, stage: str, undisturbed: Outcome) -> None:
    config, runs = write_config(tmp_path), tmp_path / "runs"
    process = subprocess.Popen(command_line("run", config, "--runs", runs), stdout=subprocess.DEVNULL)
    last = _kill_in(process, runs, stage)
    assert last["stage"] == stage
    (directory,) = runs.iterdir()
    assert "run_finished" not in {event["event"] for event in events(directory)}

    subprocess.run(command_line("run", config, "--runs", runs, "--resume", directory), check=True)
    assert Outcome.of(directory) == undisturbed


def _kill_in(process: subprocess.Popen[bytes], runs: Path, stage: str) -> dict[str, object]:
    """Kill the process once the second task's `stage` has started; returns the last step that it started."""
    limit = time.monotonic() + 120
    while time.monotonic() < limit:
        assert process.poll() is None, "the run ended before it could be killed"
        started = [line for file in runs.glob("*/events.jsonl") for line in _started(file)]
        if started and (started[-1]["task"], started[-1]["stage"]) == (1, stage):
            # Stopped at once, so that the step cannot end between the look and the kill.
            os.kill(process.pid, signal.SIGSTOP)
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            return started[-1]
        time.sleep(0.002)
    raise AssertionError(f"the stage {stage} did not start")


def _started(file: Path) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return [line for line in lines if line["event"] == "step_started"]
