"""The bench of training: stages beside a plain loop, and all tasks by both methods, whose answers do not change."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from small_runs import small_settings
from typer.testing import CliRunner

from simulations.cli import app


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(small_settings()))
    return path


@pytest.mark.slow
def test_stages_and_sequences_are_timed_and_keeping_features_changes_no_answer(config: Path) -> None:
    words = ["bench", "training", str(config), "--repeats", "1", "--unkept"]
    result = CliRunner().invoke(app, words, env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    rows = [[cell.strip() for cell in re.split(r"[│┃]", line)[1:-1]] for line in result.output.splitlines()]
    stages = {row[0]: row for row in rows if row and row[0] in ("adapt", "balance")}
    # 20 images of each of two classes; two epochs a round
    assert {name: row[1:3] for name, row in stages.items()} == {"adapt": ["2", "40"], "balance": ["2", "40"]}
    assert all(float(ratio) > 0 for row in stages.values() for ratio in row[5:8])
    sequences = {tuple(row[:2]): row[2:] for row in rows if row and row[0] in ("dynammo", "acl")}
    assert set(sequences) == {(name, kept) for name in ("dynammo", "acl") for kept in ("kept", "not kept")}
    for name in ("dynammo", "acl"):
        assert sequences[name, "kept"][-1] == sequences[name, "not kept"][-1]
    assert sequences["dynammo", "kept"][1] == "1.00"
