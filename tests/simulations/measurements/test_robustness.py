"""The table of what lying sites do: real runs of three small sites, of which one lies."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import Result
from rich.console import Console
from small_runs import small_settings
from typer.testing import CliRunner

from simulations.cli import app
from simulations.comparisons.compare import missing_cells
from simulations.measurements.figures import printed
from simulations.measurements.robustness import COLUMNS, plan, rows

pytestmark = pytest.mark.usefixtures("small_pages")
ROW_KEYS = {"aggregator", "attack", "average", "last", "error"}
# Enough images that the network learns its four classes even without the third site's.
OVERRIDES = {
    "data.train_per_class": 40,
    "federation.sites": 3,
    "federation.partition": "iid",
    "memory.exemplars": 100,
    "method.train.epochs": 4,
}


def command(folder: Path, *options: str) -> Result:
    file = folder / "small.yaml"
    file.write_text(yaml.safe_dump(small_settings("replay")))
    overrides = [word for key, value in OVERRIDES.items() for word in ("--set", f"{key}={value}")]
    words = ["robustness", str(file), "--runs", str(folder / "runs"), "--workers", "1"]
    return CliRunner().invoke(app, [*words, *overrides, *options])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("robustness")
    result = command(folder, "--attack", "scale", "--aggregator", "median")
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture(scope="module")
def report(folder: Path) -> dict[str, Any]:
    (file,) = (folder / "runs").glob("*/robustness.json")
    content: dict[str, Any] = json.loads(file.read_text())
    return content


def test_the_mean_breaks_and_the_median_does_not(report: dict[str, Any]) -> None:
    rows = {(row["aggregator"], row["attack"]): row for row in report["rows"]}
    assert list(rows) == [("mean", "clean"), ("mean", "scale"), ("median", "clean"), ("median", "scale")]
    assert rows["mean", "clean"]["last"] > 85
    assert rows["mean", "scale"]["last_from_own"] < -30
    assert abs(rows["median", "scale"]["average_from_own"]) <= 3
    assert abs(rows["median", "scale"]["last_from_mean"]) <= 3


def test_differences_are_those_of_the_figures(report: dict[str, Any]) -> None:
    rows = {(row["aggregator"], row["attack"]): row for row in report["rows"]}
    for (aggregator, _), row in rows.items():
        for figure in ("average", "last"):
            assert row[f"{figure}_from_own"] == pytest.approx(row[figure] - rows[aggregator, "clean"][figure])
            assert row[f"{figure}_from_mean"] == pytest.approx(row[figure] - rows["mean", "clean"][figure])


def test_the_csv_holds_the_same_rows(folder: Path, report: dict[str, Any]) -> None:
    (file,) = (folder / "runs").glob("*/robustness.csv")
    read = list(csv.DictReader(file.read_text().splitlines()))
    assert [{key: str(value) for key, value in row.items()} for row in report["rows"]] == read
    assert set(read[0]) >= ROW_KEYS
    assert (report["sites"], report["liars"], report["config"]["federation"]["partition"]) == (3, 1, "iid")


def test_what_has_finished_is_not_run_again(folder: Path) -> None:
    cells = plan(folder / "small.yaml", OVERRIDES, aggregators=["mean", "median"], attacks=["scale"], liars=1)
    assert len(cells) == 4
    assert missing_cells(cells, folder / "runs") == {}


def test_a_run_that_breaks_down_has_no_figures_but_a_reason(folder: Path) -> None:
    """A run that stopped left no summary: as one with a seed that nobody has run."""
    overrides = {**OVERRIDES, "seed": 2}
    cells = plan(folder / "small.yaml", overrides, aggregators=[], attacks=["scale"], liars=1)
    missing = missing_cells(cells, folder / "runs")
    assert [cell.label for cell in missing.values()] == ["clean · mean · seed 2", "scale · mean · seed 2"]
    assert [name.split("/")[0] for name in missing] == ["clean", "scale"]
    table = rows(cells, folder / "runs", {cells[1].run_name: "no site answered"})
    figures = dict.fromkeys(f"{name}{of}" for name in ("average", "last") for of in ("", "_from_own", "_from_mean"))
    assert table[1] == {"aggregator": "mean", "attack": "scale", **figures, "error": "no site answered"}
    buffer = io.StringIO()
    Console(width=100, file=buffer).print(printed(table, COLUMNS, "small"))
    assert "broke down" in buffer.getvalue()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--attack", "sing_flip"], "unknown attack 'sing_flip' (did you mean 'sign_flip'?)"),
        (["--aggregator", "medain"], "unknown aggregator 'medain' (did you mean 'median'?)"),
        (["--liars", "2", "--aggregator", "krum"], "federation.liars: krum with 2 liars needs at least 7 sites"),
        (["--liars", "3", "--aggregator", "mean"], "--liars 3 leaves no honest site among 3"),
    ],
)
def test_what_cannot_be_measured_is_refused(tmp_path: Path, options: list[str], said: str) -> None:
    result = command(tmp_path, *options)
    assert result.exit_code == 1
    assert said in " ".join(result.stderr.split())
    assert not (tmp_path / "runs").exists()
