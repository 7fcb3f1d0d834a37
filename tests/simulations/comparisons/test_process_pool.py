"""Runs in processes of this machine: dealt to GPUs, stopped by a signal, gone on with."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

import pytest
import yaml
from small_runs import Outcome, events, run_small, small_settings

from dynammo_core.configuration.config import resolve
from simulations.cli import app
from simulations.comparisons.compare import load_comparison
from simulations.comparisons.process_pool import device_of, one_by_one

LIMIT = 300.0  # seconds; a free machine needs a tenth


@pytest.mark.parametrize(("gpus", "dealt"), [(0, [None] * 5), (1, [0] * 5), (3, [0, 1, 2, 0, 1]), (8, [0, 1, 2, 3, 4])])
def test_workers_are_dealt_to_gpus_in_turn(gpus: int, dealt: list[int | None]) -> None:
    assert [device_of(slot, gpus) for slot in range(5)] == dealt


def session_is_empty(session: int) -> bool:
    """Within a moment: Python's own tracker of semaphores outlives its parent by one."""
    limit = time.monotonic() + 10
    while time.monotonic() < limit:
        try:
            os.killpg(session, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def compare(words: list[str], said: Path) -> None:
    """Run the command in a session of its own; what it says is left in a file."""
    os.setsid()
    with said.open("w") as file, redirect_stdout(file):
        app(["compare", *words])


def wait_until(true: Callable[[], object], process: ForkServerProcess) -> None:
    limit = time.monotonic() + LIMIT
    while not true():
        assert process.is_alive()
        assert time.monotonic() < limit
        time.sleep(0.05)


@pytest.mark.slow
def test_whatever_stops_it_no_worker_is_left_and_the_run_goes_on_later(
    tmp_path: Path, request: pytest.FixtureRequest, preloaded: ForkServerContext
) -> None:
    settings = small_settings("replay") | {"method": {"name": "replay", "train": {"rounds": 12, "epochs": 2}}}
    config = resolve(settings, "small.yaml", {})
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(settings))
    (tmp_path / "one.yaml").write_text(yaml.safe_dump({"base": "small.yaml", "seeds": [1], "rows": {"replay": {}}}))
    runs = tmp_path / "runs"
    said = tmp_path / "said.txt"
    checkpoint = runs / config.run_name / "checkpoints" / "latest.safetensors"

    def start() -> ForkServerProcess:
        process = preloaded.Process(target=compare, args=([str(tmp_path / "one.yaml"), "--runs", str(runs)], said))
        process.start()
        request.addfinalizer(process.kill)  # which its workers notice
        return process

    def starts() -> int:
        return len(events(checkpoint.parent.parent, "run_started"))

    for number, (stop, code) in enumerate(((signal.SIGTERM, 130), (signal.SIGKILL, -signal.SIGKILL)), start=1):
        process = start()
        wait_until(lambda times=number: checkpoint.exists() and starts() == times, process)
        assert process.pid is not None
        os.kill(process.pid, stop)
        process.join(LIMIT)
        assert process.exitcode == code
        assert ("same command" in said.read_text()) is (stop == signal.SIGTERM)
        assert session_is_empty(process.pid)
        assert not events(checkpoint.parent.parent, "run_finished")

    (cell,) = load_comparison(tmp_path / "one.yaml").cells
    assert [outcome.error for outcome in one_by_one([cell], runs, lambda name, event: None)] == [""]
    assert starts() == 3
    assert events(checkpoint.parent.parent, "run_started")[1]["resumed_at"] > 0
    assert [path.name for path in runs.iterdir() if path.is_dir() and path.name != "one"] == [config.run_name]
    assert Outcome.of(runs / config.run_name) == Outcome.of(run_small(config, tmp_path / "whole").path)
