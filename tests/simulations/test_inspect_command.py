"""`dynammo-sim inspect` and `dynammo-site inspect`: what they take, print and write."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from click.testing import Result
from hospitals import make_hospital
from PIL import Image
from small_runs import small_settings
from typer.testing import CliRunner

from client.cli import app as site_app
from simulations.cli import app


@pytest.fixture
def images(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    for label in ("burn", "mole"):
        for number in range(4):
            path = tmp_path / "images" / label / f"smith{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 255, (9, 9), dtype=np.uint8)).save(path)
    return tmp_path / "images"


def inspect(*words: str | Path) -> Result:
    return CliRunner().invoke(app, ["inspect", *map(str, words)])


def test_a_folder_a_manifest_and_an_experiment(images: Path, tmp_path: Path) -> None:
    rows = [f"{path},{path.parent.name}" for path in images.rglob("*.png")]
    (tmp_path / "list.csv").write_text("\n".join(["path,label", *rows]))
    settings = {**small_settings("replay"), "data": {"dataset": "image_folder", "root": "images"}}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(settings))
    for source in (images, tmp_path / "list.csv", tmp_path / "small.yaml"):
        sheet = json.loads(inspect(source, "--json").stdout)
        assert (sheet["data"], sheet["images"]) == (str(source), 8)
        assert [row["name"] for row in sheet["classes"]] == ["burn", "mole"]
        assert "smith" not in json.dumps(sheet)
    some = json.loads(inspect(tmp_path / "small.yaml", "--json", "--set", "data.train_per_class=1").stdout)
    assert [row["train"] for row in some["classes"]] == [1, 1]
    assert "--set overrides keys of an experiment" in inspect(images, "--set", "seed=2").stderr


def test_the_page_is_for_its_owner_alone(images: Path, tmp_path: Path) -> None:
    result = inspect(images, "--html", tmp_path / "sheet.html")
    assert result.exit_code == 0, result.output
    assert "│ mole" in result.stdout
    assert f"Page: {tmp_path / 'sheet.html'}" in result.stderr
    assert "This page holds images of patients" in result.stderr
    assert (tmp_path / "sheet.html").stat().st_mode & 0o777 == 0o600
    assert "data:image/jpeg" in (tmp_path / "sheet.html").read_text()


def test_what_cannot_be_opened_is_one_sentence(images: Path, tmp_path: Path) -> None:
    shutil.rmtree(images / "mole")
    (images / "burn" / "smith0.png").write_bytes(b"")
    result = inspect(images)
    assert result.exit_code == 1
    assert result.stderr.startswith("error ")
    assert "is not there" in inspect(tmp_path / "nowhere").stderr


def test_a_hospital_inspects_its_own_images(images: Path, tmp_path: Path) -> None:
    data = {"dataset": "image_folder", "root": str(images)}
    site = make_hospital(tmp_path / "site", "alpha", images, data=data)
    result = CliRunner().invoke(site_app, ["inspect", str(site), "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["data"] == f"alpha: {images}"
