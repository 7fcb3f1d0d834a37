"""The table of what privacy costs: one run without it, one for each budget, and what each spent."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from rich.console import Console
from small_runs import small_settings

from dynammo_core.support.errors import ConfigError
from simulations.bench.privacy_table import PrivacyRow, privacy_rows, privacy_table


def experiment(folder: Path, mechanism: str) -> Path:
    settings = small_settings("streaming_ridge") | {"privacy": {"mechanism": mechanism, "feature_norm": 10.0}}
    file = folder / "small.yaml"
    file.write_text(yaml.safe_dump(settings))
    return file


def test_a_run_without_privacy_and_one_for_each_budget(tmp_path: Path) -> None:
    rows = list(privacy_rows(experiment(tmp_path, "example"), [4.0], {"seed": 2}, tmp_path))
    assert [(row.budget, row.epsilon is None) for row in rows] == [(None, True), (4.0, False)]
    assert 3.5 < float(str(rows[1].epsilon)) <= 4
    assert rows[0].last > rows[1].last  # of twenty images a class


def test_an_experiment_without_privacy_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"privacy.mechanism is none.*--set privacy.mechanism=example"):
        next(privacy_rows(experiment(tmp_path, "none"), [4.0], {}, tmp_path))


def test_the_table_says_what_was_lost() -> None:
    rows = [PrivacyRow(None, None, None, 90.0, 85.0), PrivacyRow(8, 7.98, 2.3, 80.0, 71.5)]
    console = Console(width=100, record=True)
    console.print(privacy_table(rows, "digits"))
    lines = [line.strip("│ ").split() for line in console.export_text().splitlines() if "│" in line]
    cells = [[cell for cell in line if cell != "│"] for line in lines]
    assert cells[-2:] == [["none", "-", "-", "90.0", "85.0", "0.0"], ["8", "7.98", "2.3", "80.0", "71.5", "13.5"]]
