"""Real sites on this machine: TLS, registered keys, a process each, and two runs that they share.

In the first a site is killed, and nothing is lost. The second is extended by a new disease, and rid of a record.
"""

from __future__ import annotations

import csv
import json
import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from small_runs import small_config
from typer.testing import CliRunner

from client.cli import app as site_commands
from client.hospital.site_opening import simulated_site
from dynammo_core.configuration.config import Config, load_config, resolve
from dynammo_core.experiment import Experiment
from dynammo_core.support.processes import process_tree
from dynammo_core.wire.announcement import with_new_task
from server.cli import app as server_commands
from server.jobs.jobs import announcements, evaluation
from simulations.bench.memory_watch import held_by
from simulations.engines.engines import run_local
from simulations.rehearsal.deployment import Deployment, deployed_config, deployment
from simulations.rehearsal.faults import exemplars, run_with_fault

NAMES = ("north", "east")
OVERRIDES = {"federation.sites": len(NAMES), "federation.attempts": 2}
EQUAL = ("accuracy_after_tasks", "site_accuracies", "last_accuracy", "forgetting", "bytes_up", "rounds", "status")


@pytest.fixture(scope="module")
def consortium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    experiment = Experiment(small_config(overrides={**OVERRIDES, "method.balance.rounds": 1}))
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


def two_digits() -> Config[Any]:
    """What the consortium agrees on next: the digits 0 and 1, of the ten that lie at the sites."""
    data = deployed_config(Experiment(small_config("streaming_ridge", OVERRIDES)), NAMES).model_dump(mode="json")
    data["data"]["classes"], data["tasks"]["sizes"] = ["0", "1"], [2]
    return resolve(data, "the second agreement", {})


def operator(consortium: Deployment, *words: str) -> None:
    """Type a command of the operator."""
    result = CliRunner().invoke(server_commands, [*words, "--folder", str(consortium.server.folder)])
    assert result.exit_code == 0, result.output


@pytest.fixture(scope="module")
def extended(consortium: Deployment) -> Path:
    """A run of two digits, which two more extend once it is done: by the operator's own commands.

    Before, what ServerApps are copies of was killed.
    """
    os.kill(consortium.loaded(), signal.SIGKILL)
    config = two_digits()
    consortium.approve(config)
    file = consortium.folder / "agreed.yaml"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    operator(consortium, "run", str(file))
    run = consortium.server.runs / config.run_name
    consortium.approve(with_new_task(config, ["2", "3"]))
    operator(consortium, "extend", str(run), "--class", "2", "--class", "3")
    return run


def test_new_disease_joins_a_run_that_had_ended(extended: Path, consortium: Deployment) -> None:
    held = held_by(consortium.loaded())  # by the process that took the place of the killed one
    assert held.resident >= held.proportional >= held.anonymous > 100e6
    assert json.loads((extended / "model.json").read_text())["tasks"] == [["0", "1"], ["2", "3"]]
    summary = json.loads((extended / "summary.json").read_text())
    assert (summary["status"], len(summary["accuracy_after_tasks"])) == ("completed", 2)
    assert load_config(extended / "config.yaml").data.classes == ("0", "1", "2", "3")


def test_withdrawn_record_leaves_the_sums_of_the_run(extended: Path, consortium: Deployment) -> None:
    with (consortium.site_folder("north") / "images" / "manifest.csv").open() as table:
        record = next(row["record_id"] for row in csv.DictReader(table) if row["label"] == "0")
    before = (extended / "model.safetensors").read_bytes()
    words = ["memory", "purge", str(consortium.site_yaml("north")), "--record-id", record, "--yes"]
    assert CliRunner().invoke(site_commands, words).exit_code == 0
    operator(consortium, "forget", str(extended))
    (said,) = (extended / "corrections").glob("*.json")
    assert json.loads(said.read_text()) == {
        "corrected": ["north"],
        "nothing_to_correct": ["east"],
        "failures": {},
        "model_written": True,
    }
    assert (extended / "model.safetensors").read_bytes() != before


def _rows(run: Path) -> list[dict[str, str]]:
    with (run / "confusion_matrix.csv").open() as table:
        return list(csv.DictReader(table))
