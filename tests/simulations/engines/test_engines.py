"""What an engine is asked for and cannot do is said before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from small_runs import small_settings
from typer.testing import CliRunner

from simulations.cli import app
from simulations.engines.engines import ENGINES


@pytest.mark.parametrize("engine", ENGINES)
def test_a_run_that_cannot_work_leaves_nothing(engine: str, tmp_path: Path) -> None:
    config = tmp_path / "small.yaml"
    config.write_text(yaml.safe_dump({**small_settings(), "compute": {"device": "cuda:77"}}))
    done = CliRunner().invoke(app, ["run", str(config), "--engine", engine, "--runs", str(tmp_path / "runs")])
    assert done.exit_code == 1
    assert "cuda:77" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()
