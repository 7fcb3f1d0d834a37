"""`flwr run`, for real, and the in-process engine: the same apps, the same numbers, the same weights."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from small_runs import Finished, Outcome, small_settings

COMMAND = str(Path(sys.executable).with_name("dynammo-sim"))


@pytest.mark.slow
def test_flower_and_the_local_engine_give_the_same_bits(finished: Finished, tmp_path: Path) -> None:
    local, config = finished("dynammo"), tmp_path / "small.yaml"
    config.write_text(yaml.safe_dump(small_settings()))
    line = [COMMAND, "run", str(config), "--engine", "flower", "--runs", str(tmp_path / "flower")]
    # From another folder than the checkout: nothing may depend on where a person stands.
    subprocess.run(line, check=True, cwd=tmp_path)
    (by_flower,) = (tmp_path / "flower").iterdir()
    assert Outcome.of(by_flower) == local.outcome
    assert json.loads((by_flower / "summary.json").read_text())["bytes_down"] == local.summary["bytes_down"]
    assert (by_flower / "checkpoints" / "latest.safetensors").exists()


@pytest.mark.slow
def test_a_run_that_fails_in_flower_fails_here(tmp_path: Path) -> None:
    config = tmp_path / "small.yaml"
    config.write_text(yaml.safe_dump({**small_settings(), "compute": {"device": "cuda:77"}}))
    line = [COMMAND, "run", str(config), "--engine", "flower"]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "cuda:77" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()
