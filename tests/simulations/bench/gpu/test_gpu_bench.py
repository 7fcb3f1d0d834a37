"""The bench of a GPU: measured on the CPU if asked to, and one sentence where there is no GPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from small_runs import small_settings
from typer.testing import CliRunner

from simulations.cli import app


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump({**small_settings(), "compute": {}}))
    return path


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_without_a_gpu_one_sentence_says_so(config: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["bench", "gpu", str(config), "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert result.output == "PyTorch finds no GPU here, so there is nothing to measure.\n"
    assert not (tmp_path / "out").exists()


def test_each_stage_is_measured_beside_a_bare_loop_and_the_rate_of_matrices(config: Path, tmp_path: Path) -> None:
    words = ["bench", "gpu", str(config), "--out", str(tmp_path), "--batches", "16", "--set", "compute.device=cpu"]
    result = CliRunner().invoke(app, words, env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "gpu.json").read_text())
    rates = {(rate["stage"], rate["precision"], rate["batch"]) for rate in found["rates"]}
    assert rates == {
        (stage, precision, batch)
        for stage, batch in (("adapt", 16), ("balance", 16), ("evaluate", 128))
        for precision in ("float32", "bf16")
    }
    assert all(rate["ours"] > 0 and rate["bare"] > 0 and rate["teraflops"] > 0 for rate in found["rates"])
    assert found["doctor"] == ["note: not used: device is 'cpu'."]
    assert set(found["matrix_teraflops"]) == set(found["milliseconds_of_one_image"]) == {"float32", "bf16"}
    assert "bare loop" in result.output
