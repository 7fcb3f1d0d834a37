"""`flwr run`, for real, and the in-process engine: the same apps, the same numbers, the same weights."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from small_runs import Outcome, small_settings

COMMAND = str(Path(sys.executable).with_name("dynammo-sim"))


def run_with(engine: str, folder: Path, *options: str) -> Path:
    config = folder / "small.yaml"
    config.write_text(yaml.safe_dump(small_settings()))
    runs = folder / engine
    line = [COMMAND, "run", str(config), "--engine", engine, "--runs", str(runs)]
    # From another folder than the checkout: nothing may depend on where a person stands.
    subprocess.run([*line, *options], check=True, cwd=folder)
    (directory,) = runs.iterdir()
    return directory


@pytest.mark.slow
def test_flower_and_the_local_engine_give_the_same_bits(tmp_path: Path) -> None:
    by_flower, local = run_with("flower", tmp_path), run_with("local", tmp_path)
    assert Outcome.of(by_flower) == Outcome.of(local)
    sent = [json.loads((run / "summary.json").read_text())["bytes_down"] for run in (by_flower, local)]
    assert sent[0] == sent[1]
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
