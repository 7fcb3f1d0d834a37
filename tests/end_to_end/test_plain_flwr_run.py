"""`flwr run .` as a person types it, in the second of two checkouts, without a variable set: the right code runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_runs import Outcome

from dynammo_core.configuration.config import load_config
from simulations.engines.engines import run_local

ROOT = Path(__file__).resolve().parents[2]
OVERRIDES = {
    "backbone.name": "small_cnn",
    "backbone.weights": "random",
    "data.image_size": 16,
    "data.train_per_class": 20,
    "data.test_per_class": 10,
    "tasks.sizes": "[2, 2]",
    "federation.sites": 2,
    **{f"method.{stage}.{what}": 1 for stage in ("adapt", "balance") for what in ("rounds", "epochs")},
}
COMMAND = "from simulations.flower_command import main; main()"


@pytest.fixture
def checkout(tmp_path: Path) -> Iterator[Path]:
    """A second checkout of the project, whose SuperLink is stopped afterwards."""
    copy = tmp_path / "checkout"
    for room in ("client", "configs", "dynammo_core", "server", "simulations"):
        shutil.copytree(ROOT / room, copy / room, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "LICENSE", "Makefile"):
        shutil.copy(ROOT / file, copy / file)
    yield copy
    subprocess.run(["make", "-C", copy, "stop"], check=True, capture_output=True)


@pytest.mark.slow
def test_plain_flwr_run_leaves_the_same_run_as_the_local_engine(checkout: Path, tmp_path: Path) -> None:
    values = " ".join(
        f'{key}="{value}"' if isinstance(value, str) else f"{key}={value}" for key, value in OVERRIDES.items()
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("FLWR_", "DYNAMMO_"))}
    environment["PYTHONPATH"] = str(checkout)
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, "run", str(checkout), "--stream", "--run-config", values],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert "run completed" in done.stdout + done.stderr, done.stdout[-2000:]
    (directory,) = (checkout / "runs").iterdir()
    assert (directory / "report.html").exists()

    config = load_config(ROOT / "configs" / "digits.yaml", OVERRIDES)
    assert Outcome.of(directory) == Outcome.of(run_local(config, tmp_path / "runs", None, lambda event: None))
