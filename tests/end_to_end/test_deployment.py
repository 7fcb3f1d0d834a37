"""Real sites on this machine: TLS, registered keys, a process each; one of them is killed, and nothing is lost."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from small_runs import small_config

from client.steps.site_opening import simulated_site
from dynammo_core.experiment import Experiment
from dynammo_core.support.processes import process_tree
from server.jobs.jobs import announcements, evaluation
from simulations.engines.engines import run_local
from simulations.rehearsal.deployment import Deployment, deployed_config, deployment
from simulations.rehearsal.faults import exemplars, run_with_fault

NAMES = ("north", "east")
EQUAL = ("accuracy_after_tasks", "site_accuracies", "last_accuracy", "forgetting", "bytes_up", "rounds", "status")


@pytest.fixture(scope="module")
def consortium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    overrides = {"federation.sites": len(NAMES), "federation.attempts": 2, "method.balance.rounds": 1}
    experiment = Experiment(small_config(overrides=overrides))
    with deployment(tmp_path_factory.mktemp("consortium"), experiment, NAMES) as made:
        assert list(made.prepare_sites()) == list(NAMES)
        made.open()
        yield made


@pytest.fixture(scope="module")
def run(consortium: Deployment) -> Path:
    """A run in which a site is killed, with all of its processes, while it learns the second task, and comes back."""
    config = deployed_config(consortium.experiment, NAMES)
    consortium.approve(config)
    return run_with_fault(consortium, config, "site killed", "adapt", lambda event: None)


@pytest.fixture(scope="module")
def simulated(consortium: Deployment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_local(consortium.experiment.config, tmp_path_factory.mktemp("simulated"), None, lambda event: None)


def test_a_deployed_run_with_a_killed_site_equals_the_simulation(run: Path, simulated: Path) -> None:
    one, other = (json.loads((path / "summary.json").read_text()) for path in (run, simulated))
    assert {key: one[key] for key in EQUAL} == {key: other[key] for key in EQUAL}
    assert _rows(run) == _rows(simulated)
    assert (run / "model.safetensors").read_bytes() == (simulated / "model.safetensors").read_bytes()
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    again = [event for event in events if event["event"] == "asking_again"]
    assert [failure["site"] for event in again for failure in event["failures"]] == [1]


def test_exemplars_are_encrypted_and_those_of_the_simulation(
    run: Path, simulated: Path, consortium: Deployment
) -> None:
    name = json.loads((simulated / "events.jsonl").read_text().splitlines()[0])["run"]
    kept = exemplars(consortium, run)
    for index, site in enumerate(NAMES):
        memory = simulated_site(consortium.experiment, index, simulated / "sites", name).memory()
        assert kept[site] == (memory.task, list(memory.record_ids))
        (file,) = (consortium.site_folder(site) / "memory").glob("runs/*/memory.safetensors")
        assert file.stat().st_mode & 0o777 == 0o600
        assert not any(record.encode() in file.read_bytes() for record in memory.record_ids)


def test_sites_announce_their_classes_and_test_the_model_at_any_time(run: Path, consortium: Deployment) -> None:
    told = announcements(consortium.server)
    assert set(told) == set(NAMES)
    # 20 training and 10 test images of each of ten digits lie at two sites, in bands of 1, 10 and 30
    assert {band for said in told.values() for band in said["classes"].values()} <= {1, 10, 30}
    summary = json.loads((run / "summary.json").read_text())
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != "flower_run.json"}
    result = evaluation(consortium.server, Path(os.path.relpath(run)))  # as a person would type it
    assert result["accuracy"] == summary["last_accuracy"]
    assert [row["accuracy"] for row in result["sites"].values()] == summary["site_accuracies"]
    assert {path: path.read_bytes() for path in before} == before


def test_no_process_of_a_consortium_writes_outside_its_folders(run: Path, consortium: Deployment) -> None:
    for name in ("server", *NAMES):
        looked_at = 0
        for process in process_tree(consortium.process(name).pid):
            with suppress(FileNotFoundError):  # it has ended
                place = Path(f"/proc/{process}/cwd").readlink()
                assert place.is_relative_to(consortium.folder), (name, place)
                files = [file.readlink() for file in Path(f"/proc/{process}/fd").iterdir()]
                regular = [file for file in files if file.is_file()]
                assert [file for file in regular if not file.is_relative_to(consortium.folder)] == [], name
                looked_at += 1
        assert looked_at >= 2, name  # what was started, and Flower's executor behind it


def _rows(run: Path) -> list[dict[str, str]]:
    with (run / "confusion_matrix.csv").open() as table:
        return list(csv.DictReader(table))
