"""One job for every engine: its rounds are timed, and an engine that is not there is left out in one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_runs import small_config
from typer.testing import CliRunner

from dynammo_core.support.terminal import command_line
from simulations.bench.command import bench
from simulations.bench.engines.command import ROWS, pfl_python
from simulations.bench.engines.job import ENGINES, Job


def job(folder: Path) -> Job:
    path = folder / "job.yaml"
    path.write_text(small_config("joint", {"tasks.sizes": "[2]"}).to_yaml())
    return Job(path)


def test_each_row_has_an_engine() -> None:
    assert list(ROWS) == list(ENGINES)


@pytest.mark.parametrize("engine", ["loop", "local"])
def test_every_round_is_timed(tmp_path: Path, engine: str) -> None:
    its = job(tmp_path)
    seconds = ENGINES[engine](its)
    assert len(seconds) == len(its.steps)
    assert min(seconds) > 0


def test_without_a_folder_pfl_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert pfl_python(None) is None
    assert "pfl is left out: name a folder" in capsys.readouterr().out


def test_an_unknown_engine_is_refused(tmp_path: Path) -> None:
    app = command_line("dynammo-sim")
    app.add_typer(bench, name="bench")
    result = CliRunner().invoke(app, ["bench", "engines", str(job(tmp_path).config), "--only", "ray"])
    assert result.exit_code == 1
    assert "unknown engine 'ray'" in result.output
