"""Comparisons: rows and seeds as data, only missing runs run, figures paired by seed."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from statistics import mean

import pytest
import yaml
from rich.console import Console
from small_runs import small_settings
from typer.testing import CliRunner

from dynammo_core.errors import ConfigError
from simulations.cli import app
from simulations.compare import Cell, load_comparison, run_missing, table


def write_comparison(folder: Path, **changes: object) -> Path:
    (folder / "small.yaml").write_text(yaml.safe_dump(small_settings()))
    comparison: dict[str, object] = {
        "base": "small.yaml",
        "seeds": [1, 2],
        "overrides": {"method.adapt.epochs": 1},
        "rows": {"dynammo": {}, "no adapters": {"method.adapters": False}},
    }
    file = folder / "comparison.yaml"
    file.write_text(yaml.safe_dump({**comparison, **changes}))
    return file


def pretend(cell: Cell, runs: Path, *, average: float, code: str | None = None) -> None:
    """A finished run's summary, as `server/results.py` leaves it."""
    from dynammo_core.experiment import code_hash

    summary = {
        "average_incremental_accuracy": average,
        "last_accuracy": average - 10,
        "forgetting": 1.0,
        "worst_site_accuracy": 50.0,
        "seconds": 1.0,
        "status": "completed",
        "config_hash": cell.config.content_hash,
        "code_hash": code or code_hash(),
    }
    cell.directory(runs).mkdir(parents=True)
    (cell.directory(runs) / "summary.json").write_text(json.dumps(summary))


def printed(cells: list[Cell], runs: Path) -> str:
    buffer = io.StringIO()
    Console(width=200, file=buffer).print(table(cells, runs))
    return buffer.getvalue()


def test_every_row_meets_every_seed_and_the_common_overrides(tmp_path: Path) -> None:
    cells = load_comparison(write_comparison(tmp_path))
    assert [(cell.row, cell.seed) for cell in cells] == [
        ("dynammo", 1),
        ("no adapters", 1),
        ("dynammo", 2),
        ("no adapters", 2),
    ]
    assert [cell.config.method.adapters for cell in cells] == [True, False, True, False]
    assert {cell.config.method.adapt.epochs for cell in cells} == {1}
    assert [cell.config.seed for cell in cells] == [1, 1, 2, 2]


def test_means_deviations_and_paired_differences(tmp_path: Path) -> None:
    cells, runs = load_comparison(write_comparison(tmp_path)), tmp_path / "runs"
    for cell, average in zip(cells, (80.0, 78.0, 90.0, 86.0), strict=True):
        pretend(cell, runs, average=average)
    lines = printed(cells, runs).splitlines()
    (dynammo,) = [line for line in lines if "dynammo" in line]
    (control,) = [line for line in lines if "no adapters" in line]
    # mean(80, 90) = 85, sample deviation 5 * sqrt(2) = 7.1; the pairs 78 - 80 and 86 - 90: mean -3, deviation 1.4
    assert "85.0 ± 7.1" in dynammo
    assert "82.0 ± 5.7" in control
    assert "-3.0 ± 1.4" in control


def test_pairs_are_made_by_seed_where_runs_are_missing(tmp_path: Path) -> None:
    cells, runs = load_comparison(write_comparison(tmp_path)), tmp_path / "runs"
    pretend(cells[2], runs, average=90.0)  # dynammo, seed 2
    for cell, average in ((cells[1], 78.0), (cells[3], 86.0)):
        pretend(cell, runs, average=average)
    (control,) = [line for line in printed(cells, runs).splitlines() if "no adapters" in line]
    assert "-4.0" in control  # 86 - 90, seed 2 alone


def test_a_run_by_other_code_does_not_count(tmp_path: Path) -> None:
    (cell, *_) = load_comparison(write_comparison(tmp_path))
    pretend(cell, tmp_path / "runs", average=80.0, code="0" * 64)
    assert cell.summary(tmp_path / "runs") is None


@pytest.mark.slow
def test_the_command_runs_what_is_missing_and_nothing_twice(tmp_path: Path) -> None:
    file, runs = write_comparison(tmp_path, seeds=[1]), tmp_path / "runs"
    line = ["compare", str(file), "--runs", str(runs), "--workers", "1"]
    assert CliRunner().invoke(app, line).exit_code == 0
    rows = list(csv.DictReader((runs / "comparison.csv").open()))
    assert [row["row"] for row in rows] == ["dynammo", "no adapters"]
    assert 50 < mean(float(row["average_incremental_accuracy"]) for row in rows) <= 100  # 50 is chance in task 1

    before = {path: path.stat().st_mtime_ns for path in runs.rglob("events.jsonl")}
    finished: list[int] = []
    run_missing(load_comparison(file), runs, 1, finished.append)
    assert finished == [2]
    assert {path: path.stat().st_mtime_ns for path in runs.rglob("events.jsonl")} == before


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"rows": {}}, "rows"),
        ({"seedz": [1]}, "seedz"),
        ({"rows": {"x": {"method.alfa": 1}}}, "method.alfa"),
        ({"base": "nowhere.yaml"}, "nowhere.yaml"),
    ],
)
def test_a_wrong_comparison_is_refused_by_name(tmp_path: Path, changes: dict[str, object], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        load_comparison(write_comparison(tmp_path, **changes))
