"""`dynammo-server export`: model and card side by side, nothing replaced unasked, nothing left of a failure."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest
import typer
from click.testing import Result
from small_runs import Finished
from typer.testing import CliRunner

from dynammo_core.deployed.onnx_file import onnx_predictor
from dynammo_core.deployed.predictor import Predictor
from server.report.export_command import export

app = typer.Typer()
app.command()(export)


def exported(*words: str | Path) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture
def run(finished: Finished) -> Path:
    return finished("dynammo").path


def test_model_and_card_stand_side_by_side(run: Path, tmp_path: Path) -> None:
    output = tmp_path / "out" / "skin.pt"
    result = exported(run, "--format", "torchscript", "--output", output)
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in output.parent.iterdir()) == ["skin.md", "skin.pt"]
    digest = hashlib.sha256(output.read_bytes()).hexdigest()
    assert f"SHA-256: {digest}" in result.stdout
    assert f"`{digest}`" in (tmp_path / "out" / "skin.md").read_text()
    assert "Largest difference from PyTorch on random images: " in result.stdout


def test_the_card_goes_where_it_is_wanted_and_the_name_says_the_format(run: Path, tmp_path: Path) -> None:
    assert exported(run, "--output", tmp_path / "skin.safetensors", "--card", tmp_path / "CARD.md").exit_code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["CARD.md", "skin.safetensors"]
    assert Predictor.load(tmp_path / "skin.safetensors").classes == ("0", "1", "2", "3")
    said = exported(run, "--output", tmp_path / "skin.onnx", "--card", tmp_path / "ONNX.md").stdout
    assert "skin.onnx (onnx, " in said
    assert onnx_predictor(tmp_path / "skin.onnx").classes == ("0", "1", "2", "3")


@pytest.mark.parametrize("name", ["skin.safetensors", "skin.md"])
def test_nothing_is_replaced_unasked(run: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    words = (run, "--output", tmp_path / "skin.safetensors")
    result = exported(*words)
    assert result.exit_code == 1
    assert "already there: " in " ".join(result.stderr.split())
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "mine")]
    assert exported(*words, "--force").exit_code == 0
    assert len((tmp_path / name).read_bytes()) > 1000


def test_failures_leave_nothing(run: Path, tmp_path: Path) -> None:
    contradicting = tmp_path / "run"
    shutil.copytree(run, contradicting, ignore=shutil.ignore_patterns("sites", "checkpoints", "models"))
    (contradicting / "summary.json").unlink()
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    shutil.copy(run / "config.yaml", unfinished)
    out = tmp_path / "out"
    out.mkdir()
    for words, said in (
        ((run, "--format", "onyx", "--output", out / "m.onnx"), "unknown format 'onyx' (did you mean 'onnx'?)"),
        ((run, "--format", "safetensors", "--output", out / "m.onnx"), "contradicts the name m.onnx, which says onnx"),
        ((run, "--output", out / "model"), "names that end in .safetensors, .pt, .torchscript, .onnx; or add --format"),
        ((run, "--output", out / "m.md"), "two different files"),
        ((tmp_path, "--output", out / "m.safetensors"), "cannot read"),
        ((unfinished, "--output", out / "m.safetensors"), "is a run without a model: its first task has not ended"),
        ((contradicting, "--output", out / "m.safetensors"), "belongs to configuration None"),
    ):
        result = exported(*words)
        assert result.exit_code == 1
        assert said in result.stderr
        assert list(out.iterdir()) == []
