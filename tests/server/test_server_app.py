"""The ServerApp as a SuperLink starts it, with sites in this process."""

from __future__ import annotations

from pathlib import Path

import pytest
from flwr.app import Context, RecordDict
from small_runs import small_config
from tables import registered

from client.app import app as client_app
from server.app import app as server_app
from server.run_directory.flower_run import FLOWER_RUN
from server.trackers import TRACKERS
from server.trackers.tracker import TrackedRun
from simulations.engines.local_grid import LocalGrid


def test_who_waits_for_a_run_to_begin_does_not_wait_for_its_trackers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[bool] = []

    class Slow:
        def __init__(self, run: TrackedRun) -> None:
            told.append((run.directory / FLOWER_RUN).is_file())
            raise ConnectionError("after a minute")

    file = tmp_path / "small.yaml"
    file.write_text(small_config("replay").to_yaml())
    monkeypatch.setenv("DYNAMMO_CHECKOUT", str(tmp_path))
    values = {"config": str(file), "track": "slow", "consortium": "/consortium"}
    context = Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config=values)
    with registered(TRACKERS, "slow", Slow):
        server_app(LocalGrid(client_app, nodes=3, run_config={}), context)
    assert told == [True]
