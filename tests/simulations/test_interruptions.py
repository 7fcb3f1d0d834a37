"""What may happen to a run's terminal: Ctrl-C, a pipe that closes, a full disk, a character set of few signs."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from small_runs import events, small_settings

COMMAND = str(Path(sys.executable).with_name("dynammo-sim"))


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """An experiment whose rounds take a second each, in a folder whose name must be quoted."""
    folder = tmp_path / "of mine"
    folder.mkdir()
    settings = small_settings("replay")
    settings["method"]["train"] |= {"rounds": 2, "epochs": 60}
    settings["memory"]["exemplars"] = 60
    (folder / "small.yaml").write_text(yaml.safe_dump(settings))
    return folder / "small.yaml"


def words(config: Path) -> list[str]:
    return [COMMAND, "run", str(config), "--runs", str(config.parent / "runs"), "--set", "tasks.sizes=[2, 1]"]


def stopped_in(config: Path, step: int) -> str:
    """What a run says that Ctrl-C stops in a step."""
    process = subprocess.Popen(words(config), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    limit = time.monotonic() + 120
    while f'"step": {step},' not in "".join(_lines(config.parent / "runs")):
        assert time.monotonic() < limit
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    return said.splitlines()[-1]


def _lines(runs: Path) -> list[str]:
    """The lines of the log after the first, which names all steps."""
    return [line for log in runs.glob("*/events.jsonl") for line in log.read_text().splitlines()[1:]]


@pytest.mark.parametrize(("step", "said"), [(0, "No round was finished. Start again with: "), (1, "Continue with: ")])
def test_the_command_that_ctrl_c_prints_can_be_run(config: Path, step: int, said: str) -> None:
    before, _, command = stopped_in(config, step).partition(said)
    assert before == "Stopped. "
    again = shlex.split(command)
    assert again[0] == "dynammo-sim"
    assert ("--resume" in again) is (step > 0)
    done = subprocess.run([COMMAND, *again[1:]], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    (directory,) = (path for path in (config.parent / "runs").iterdir() if not path.name.endswith(".1"))
    starts = [event["resumed_at"] for event in events(directory, "run_started")]
    assert starts == ([0, 1] if step else [0])
    assert len(events(directory, "run_finished")) == 1


def test_a_pipe_that_closes_does_not_end_a_run(config: Path) -> None:
    process = subprocess.Popen(words(config), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(300) == 0
    assert process.stderr.read() == "warning nothing more can be printed (Broken pipe); the command continues\n"
    (directory,) = (config.parent / "runs").iterdir()
    assert (directory / "report.html").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_nor_does_a_full_disk_under_its_log_or_a_small_character_set(config: Path) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "NO_COLOR": "1"}
    line = [*words(config), "--set", "method.train.epochs=1", "--set", "data.test_per_class=2"]
    with open("/dev/full", "w") as full:  # noqa: PTH123
        done = subprocess.run(line, stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=300)
    assert (done.returncode, done.stderr.count("\n")) == (0, 1)
    assert "(No space left on device); the command continues" in done.stderr
    done = subprocess.run(line, env=environment, capture_output=True, encoding="ascii", check=False, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    assert "| last accuracy" in done.stdout
