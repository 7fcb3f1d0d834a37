"""The table of what privacy costs: one run without it, one for each budget, and what each spent."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from rich.console import Console
from small_runs import small_settings
from typer.testing import CliRunner

from dynammo_core.support.errors import ConfigError
from simulations.cli import app
from simulations.measurements.figures import printed
from simulations.measurements.privacy import COLUMNS, plan

pytestmark = pytest.mark.usefixtures("small_pages")


def experiment(folder: Path, mechanism: str) -> Path:
    settings = small_settings("streaming_ridge") | {"privacy": {"mechanism": mechanism, "feature_norm": 10.0}}
    file = folder / "small.yaml"
    file.write_text(yaml.safe_dump(settings))
    return file


def test_a_run_without_privacy_and_one_for_each_budget(tmp_path: Path) -> None:
    file, runs = experiment(tmp_path, "example"), tmp_path / "runs"
    line = ["bench", "privacy", str(file), "--epsilon", "4", "--set", "seed=2", "--runs", str(runs), "--workers", "1"]
    result = CliRunner().invoke(app, line)
    assert result.exit_code == 0, result.output
    (written,) = runs.glob("*/privacy.json")
    plain, private = json.loads(written.read_text())["rows"]
    assert (plain["budget"], plain["epsilon"], plain["lost"], private["budget"]) == ("none", None, 0, "4")
    assert 3.5 < private["epsilon"] <= 4
    assert private["lost"] == plain["last"] - private["last"] > 0  # of twenty images a class
    assert f"bench privacy {file} --epsilon 4.0" in (written.parent / "index.html").read_text()
    before = {path: path.stat().st_mtime_ns for path in runs.rglob("events.jsonl")}
    assert len(before) == 2
    assert CliRunner().invoke(app, line).exit_code == 0  # what has finished is not run again
    assert {path: path.stat().st_mtime_ns for path in runs.rglob("events.jsonl")} == before


def test_an_experiment_without_privacy_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"privacy.mechanism is none.*--set privacy.mechanism=example"):
        plan(experiment(tmp_path, "none"), [4.0], {})


def test_the_table_is_in_percent_and_without_privacy_it_has_dashes() -> None:
    plain = {"budget": "none", "epsilon": None, "noise_multiplier": None, "average": 90.0, "last": 85.0, "lost": 0.0}
    private = {"budget": "8", "epsilon": 7.98, "noise_multiplier": 2.3, "average": 80.0, "last": 71.5, "lost": 13.5}
    console = Console(width=100, record=True)
    console.print(printed([plain, private], COLUMNS, "digits"))
    cells = [line.split() for line in console.export_text().splitlines()]
    assert cells[-2:] == [["none", "-", "-", "90.0", "85.0", "0.0"], ["8", "7.98", "2.3", "80.0", "71.5", "13.5"]]
