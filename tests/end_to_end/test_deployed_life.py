"""The life of a run among real sites: learnt, extended by a new disease, and rid of a withdrawn record."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from small_runs import small_settings
from typer.testing import CliRunner

from client.cli import app as site_commands
from dynammo_core.configuration.config import Config, load_config, resolve
from dynammo_core.experiment import Experiment
from dynammo_core.wire.announcement import with_new_task
from server.cli import app as server_commands
from simulations.rehearsal.deployment import Deployment, deployed_config, deployment

NAMES = ("north", "east", "south")


def of_two_digits(simulated: Experiment) -> Config[Any]:
    """What the consortium agrees on first: the digits 0 and 1, of the ten that lie at the sites."""
    data = deployed_config(simulated, NAMES).model_dump(mode="json")
    data["data"]["classes"], data["tasks"]["sizes"] = ["0", "1"], [2]
    return resolve(data, "the first agreement", {})


@pytest.fixture(scope="module")
def consortium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    experiment = Experiment(resolve(small_settings("streaming_ridge"), "small.yaml", {"federation.attempts": 2}))
    with deployment(tmp_path_factory.mktemp("consortium"), experiment, NAMES) as made:
        list(made.prepare_sites())
        made.open()
        yield made


@pytest.fixture(scope="module")
def run(consortium: Deployment) -> Path:
    """A run of two digits, which two more extend once it is done: by the operator's own commands."""
    config = of_two_digits(consortium.experiment)
    consortium.approve(config)
    file = consortium.folder / "agreed.yaml"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    operator(consortium, "run", str(file))
    (run,) = (consortium.server.folder / "runs").iterdir()
    consortium.approve(with_new_task(config, ["2", "3"]))
    operator(consortium, "extend", str(run), "--class", "2", "--class", "3")
    return run


def operator(consortium: Deployment, *words: str) -> str:
    """What a command of the operator prints."""
    result = CliRunner().invoke(server_commands, [*words, "--folder", str(consortium.server.folder)])
    assert result.exit_code == 0, result.output
    return result.output


def test_new_disease_joins_a_run_that_had_ended(run: Path) -> None:
    assert json.loads((run / "model.json").read_text())["tasks"] == [["0", "1"], ["2", "3"]]
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["status"], len(summary["accuracy_after_tasks"])) == ("completed", 2)
    assert load_config(run / "config.yaml").data.classes == ("0", "1", "2", "3")


def test_withdrawn_record_leaves_the_sums_of_the_run(run: Path, consortium: Deployment) -> None:
    with (consortium.site_folder("north") / "images" / "manifest.csv").open() as table:
        record = next(row["record_id"] for row in csv.DictReader(table) if row["label"] == "0")
    before = (run / "model.safetensors").read_bytes()
    words = ["memory", "purge", str(consortium.site_yaml("north")), "--record-id", record, "--yes"]
    assert CliRunner().invoke(site_commands, words).exit_code == 0
    operator(consortium, "forget", str(run))
    (said,) = (run / "corrections").glob("*.json")
    assert json.loads(said.read_text()) == {
        "corrected": ["north"],
        "nothing_to_correct": ["east", "south"],
        "failures": {},
        "model_written": True,
    }
    assert (run / "model.safetensors").read_bytes() != before
