"""A second start of an experiment that is running: refused by every way to start one, and nothing of it is touched."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

import pytest
import yaml
from click.testing import Result
from flwr.app import Context, RecordDict
from small_runs import Finished, Outcome, small_config, small_settings
from typer.testing import CliRunner

from client.app import app as client_app
from dynammo_core.support.errors import RunError
from server.app import app as server_app
from simulations.cli import app
from simulations.engines.local_grid import LocalGrid

COMMAND = str(Path(sys.executable).with_name("dynammo-sim"))
NAME = small_config().run_name


def invoke(*words: str | Path) -> Result:
    return CliRunner().invoke(app, list(map(str, words)))


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump(small_settings()))
    return file


@pytest.fixture
def halted(config: Path, tmp_path: Path, preloaded: ForkServerContext) -> Iterator[ForkServerProcess]:
    """A run that stands still in the middle of its second task."""
    process = preloaded.Process(target=invoke, args=("run", config, "--runs", tmp_path / "runs"))
    process.start()
    assert process.pid is not None
    _wait_for_step(tmp_path / "runs" / NAME, 5)
    os.kill(process.pid, signal.SIGSTOP)
    yield process
    process.kill()
    process.join()


def _wait_for_step(directory: Path, step: int) -> None:
    limit = time.monotonic() + 120
    while not _has_started(directory, step):
        assert time.monotonic() < limit
        time.sleep(0.01)


def _has_started(directory: Path, step: int) -> bool:
    log = directory / "events.jsonl"
    return log.exists() and f'"step": {step},' in log.read_text().partition('"resumed_at"')[2]


def _files(folder: Path) -> dict[Path, tuple[int, bytes]]:
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


def test_it_is_refused_and_the_first_goes_on(
    halted: ForkServerProcess, config: Path, tmp_path: Path, finished: Finished
) -> None:
    runs = tmp_path / "runs"
    before = _files(runs)
    for engine in ("local", "flower"):
        for more in ((), ("--resume", runs / NAME)):
            refused = invoke("run", config, "--runs", runs, "--engine", engine, *more)
            assert refused.exit_code == 1
            assert f"the run in {runs / NAME} is in progress: process {halted.pid} on" in refused.stderr
    assert _files(runs) == before

    assert halted.pid is not None
    os.kill(halted.pid, signal.SIGCONT)
    halted.join(120)
    assert Outcome.of(runs / NAME) == finished("dynammo").outcome
    assert [path.name for path in runs.iterdir()] == [NAME]


def test_the_app_of_flwr_run_refuses_too(
    halted: ForkServerProcess, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DYNAMMO_CHECKOUT", str(tmp_path))
    before = _files(tmp_path)
    for resume in ("", f"runs/{NAME}"):
        values = {"config": str(config), "runs": "runs", "resume": resume}
        context = Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config=values)
        with pytest.raises(RunError, match=f"is in progress: process {halted.pid} on"):
            server_app(LocalGrid(client_app, nodes=3, run_config={}), context)
    assert _files(tmp_path) == before


def test_after_a_kill_the_next_start_goes_ahead(
    halted: ForkServerProcess, config: Path, tmp_path: Path, finished: Finished
) -> None:
    halted.kill()
    halted.join()
    again = invoke("run", config, "--runs", tmp_path / "runs")
    assert again.exit_code == 0, again.output
    assert Outcome.of(tmp_path / "runs" / NAME) == finished("dynammo").outcome
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == [NAME, f"{NAME}.1"]


@pytest.mark.slow
def test_beside_a_run_of_flower_nothing_starts(config: Path, tmp_path: Path) -> None:
    """From the first moment, in which Flower itself is still starting, and later, when its process runs."""
    runs = tmp_path / "runs"
    first = subprocess.Popen([COMMAND, "run", str(config), "--engine", "flower", "--runs", str(runs)])
    try:
        limit = time.monotonic() + 120
        while not (log := runs / NAME / "flower.log").exists():
            assert time.monotonic() < limit
            time.sleep(0.01)
        inode = log.stat().st_ino
        refused = invoke("run", config, "--runs", runs, "--engine", "flower")
        assert f"the run in {runs / NAME} is being started: process {first.pid} on" in refused.stderr
        _wait_for_step(runs / NAME, 0)
        for engine, state in (("local", "is in progress"), ("flower", "is being started")):
            refused = invoke("run", config, "--runs", runs, "--engine", engine)
            assert f"the run in {runs / NAME} {state}: process " in refused.stderr
        _wait_for_step(runs / NAME, 2)  # the first goes on
        first.send_signal(signal.SIGINT)
        assert first.wait(60) != 0
    finally:
        first.kill()
        first.wait()
    assert log.stat().st_ino == inode
    assert [path.name for path in runs.iterdir() if not path.name.startswith(".")] == [NAME]  # locks are hidden
