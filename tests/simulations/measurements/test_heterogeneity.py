"""What becomes of a model of one site at another: real runs of two small sites whose scanners differ."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import Result
from small_runs import events, run_small, small_config, small_settings
from typer.testing import CliRunner

from client.app import app as client_app
from dynammo_core.experiment import Experiment
from simulations.cli import app
from simulations.comparisons.compare import missing_cells
from simulations.comparisons.wires import LonelyGrid
from simulations.measurements.heterogeneity import plan

pytestmark = pytest.mark.usefixtures("small_pages")
OVERRIDES = {
    "data.train_per_class": 60,
    "federation.sites": 2,
    "federation.partition": "iid",
    "memory.exemplars": 100,
    "method.adapt.rounds": 1,
    "method.balance.rounds": 2,
    "scanners.strength": 1.0,
}


def command(folder: Path, *options: str, **overrides: object) -> Result:
    file = folder / "small.yaml"
    file.write_text(yaml.safe_dump(small_settings()))
    given = [word for key, value in {**OVERRIDES, **overrides}.items() for word in ("--set", f"{key}={value}")]
    words = ["heterogeneity", str(file), "--runs", str(folder / "runs"), "--workers", "1"]
    return CliRunner().invoke(app, [*words, *given, *options])


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("heterogeneity")
    options = ("--statistics", "trained", "--set", "scanners.kind=stain")
    result = command(folder, *options)
    assert result.exit_code == 0, result.output
    assert "all sites, own statistics: trained" in " ".join(result.output.split())
    assert "small: last accuracy by site" in result.output and "small: last mean class recall by site" in result.output
    (file,) = (folder / "runs").glob("*/heterogeneity.json")
    content: dict[str, Any] = json.loads(file.read_text())
    written = list(csv.DictReader(file.with_suffix(".csv").read_text().splitlines()))
    assert [{key: "" if value is None else str(value) for key, value in row.items()} for row in content["rows"]] == (
        written
    )
    overrides = {**OVERRIDES, "scanners.kind": "stain"}
    cells = plan(folder / "small.yaml", overrides, seeds=[], statistics=["trained"])
    assert len(cells) == 7
    assert missing_cells(cells, folder / "runs") == {}  # what has finished is not run again
    return content


def test_every_site_learns_alone_and_all_together(report: dict[str, Any]) -> None:
    alone = ["site 0 alone", "site 1 alone", "all sites"]
    assert [(row["scanners"], row["trained_at"]) for row in report["rows"]] == [
        *(("same", who) for who in alone),
        *(("stain", who) for who in alone),
        ("stain", "all sites, own statistics: trained"),
    ]


def test_a_model_of_one_site_fails_at_the_next_because_of_its_scanner(report: dict[str, Any]) -> None:
    lost = {
        kind: np.mean(
            [row["own"] - row["others"] for row in report["rows"][:-1] if row["scanners"] == kind and row["others"]]
        )
        for kind in ("same", "stain")
    }
    assert abs(lost["same"]) < 15
    assert lost["stain"] > lost["same"] + 15


def test_figures_are_at_home_and_elsewhere(report: dict[str, Any]) -> None:
    first, second, both, *_ = report["rows"]
    assert (first["own"], first["others"]) == (first["site_0"], first["site_1"])
    assert (second["own"], second["others"]) == (second["site_1"], second["site_0"])
    assert both["own"] == pytest.approx((both["site_0"] + both["site_1"]) / 2, abs=1e-3)
    assert both["others"] is None
    for row in (first, second):
        assert {row["recall_own"], row["recall_others"]} == {row["recall_site_0"], row["recall_site_1"]}
    assert both["recall_own"] == pytest.approx((both["recall_site_0"] + both["recall_site_1"]) / 2, abs=1e-3)
    assert any(row["recall_own"] != row["own"] for row in report["rows"])


def test_who_is_alone_is_heard_alone(tmp_path: Path) -> None:
    config = small_config(overrides={"federation.partition": "iid"})
    run = run_small(config, tmp_path, grid=LonelyGrid(client_app, config.federation.sites, learner=1))
    for event in events(run.path, "step_finished"):
        heard = [site["site"] for site in event["sites"] if not site["abstained"]]
        assert heard == ([1] if event["stage"] in {"adapt", "balance", "recalibrate"} else [0, 1, 2]), event["stage"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({}, "no difference to measure"),
        ({"scanners.kind": "noise", "federation.sites": 1}, "no difference to measure"),
        (
            {"scanners.kind": "noise", "federation.sites": 3, "federation.secure_aggregation": True},
            "cannot learn alone",
        ),
    ],
)
def test_where_there_is_nothing_to_measure_it_says_so(tmp_path: Path, overrides: dict[str, object], words: str) -> None:
    result = command(tmp_path, **overrides)
    assert result.exit_code == 1
    assert words in " ".join(result.output.split())


# So little concentration that each class lies at one site: of the four learnt, 0, 2 and 3 at one, 1 at another.
ALONE = {"federation.alpha": 0.001, "federation.sites": 4, "seed": 5, "data.train_per_class": 60}


def holds(experiment: Experiment) -> list[set[int]]:
    """The classes that each site holds, of those that are learnt."""
    labels, last = experiment.dataset.train.labels, len(experiment.stream) - 1
    return [set(labels[held].tolist()) & set(experiment.stream.seen(last)) for held in experiment.partition.train]


def test_a_site_with_one_class_takes_part(tmp_path: Path) -> None:
    more = {"memory.exemplars": 100, "method.adapt.rounds": 2, "method.balance.rounds": 6, "method.balance.epochs": 4}
    config = small_config(overrides={**ALONE, **more})
    assert holds(Experiment(config)) == [{0, 2, 3}, {1}, set(), set()]
    run = run_small(config, tmp_path)
    assert json.loads((run.path / "summary.json").read_text())["status"] == "completed"
    heard = {
        event["stage"]: [site["site"] for site in event["sites"] if not site["abstained"]]
        for event in events(run.path, "step_finished")
        if event["task"] == 0
    }
    assert heard["adapt"] == heard["balance"] == [0, 1]


def test_sums_of_sites_with_one_class_are_those_of_one_site(tmp_path: Path) -> None:
    summaries = []
    for sites in (4, 1):
        config = small_config("streaming_ridge", {**ALONE, "federation.sites": sites})
        summaries.append(json.loads((run_small(config, tmp_path / str(sites)).path / "summary.json").read_text()))
    apart, pooled = summaries
    assert apart["accuracy_after_tasks"] == pooled["accuracy_after_tasks"]
    assert apart["site_accuracies"][1] > 50  # the class that one site alone holds is answered, too
