"""`dynammo-site predict` on real image files: every file is answered or named, in every form of output."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from click.testing import Result
from PIL import Image
from small_runs import Finished
from typer.testing import CliRunner

from client.predict_command import predict
from dynammo_core.predictor import Predictor

app = typer.Typer()
app.command()(predict)


def asked(*words: str | Path) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200"})


def asked_json(*words: str | Path) -> dict[str, Any]:
    result = asked(*words, "--json")
    assert result.exit_code == 0, result.output
    parsed: dict[str, Any] = json.loads(result.stdout)
    return parsed


@pytest.fixture
def model(finished: Finished) -> Path:
    return finished("dynammo").path


@pytest.fixture
def images(finished: Finished, tmp_path: Path) -> Path:
    """Five test images of the run, as files in a folder and its subfolder."""
    source = finished("dynammo").experiment.dataset.test.source
    folder = tmp_path / "images"
    (folder / "ward").mkdir(parents=True)
    for index in range(5):
        name = f"ward/{index}.PNG" if index % 2 else f"{index}.png"
        Image.fromarray(source.read(index)).save(folder / name, format="PNG")
    (folder / "notes.txt").write_text("passed over in a folder")
    return folder


def in_order(folder: Path) -> list[Path]:
    """As folders are searched: sorted by path."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() == ".png")


def test_a_folder_is_answered_as_the_predictor_answers(model: Path, images: Path) -> None:
    found = asked_json(model, images, "--top", "2", "--batch-size", "2")
    files, predictor = in_order(images), Predictor.load(model)
    answers = predictor.predict(predictor.read(files))
    assert [row["file"] for row in found["images"]] == [str(file) for file in files]
    assert [row["class"] for row in found["images"]] == [predictor.classes[i] for i in answers.labels.tolist()]
    scores = [row["open_set_score"] for row in found["images"]]
    assert scores == pytest.approx(answers.open_set_scores.tolist(), abs=1e-5)
    for row, probabilities, label in zip(found["images"], answers.probabilities, answers.labels, strict=True):
        assert row["probability"] == pytest.approx(float(probabilities[label]), abs=1e-5)
        assert row["top"][0] == {"class": row["class"], "probability": row["probability"]}
        rest = probabilities.clone()
        rest[label] = -1
        assert row["top"][1]["class"] == predictor.classes[int(rest.argmax())]
        assert len(row["top"]) == 2
    assert found["unreadable"] == []
    assert found["model"]["classes"] == ["0", "1", "2", "3"]
    assert found["model"]["lineage"]["after_task"] == 2


def test_more_classes_than_there_are_is_all_of_them(model: Path, images: Path) -> None:
    row = asked_json(model, images / "0.png", "--top", "99")["images"][0]
    assert sorted(entry["class"] for entry in row["top"]) == ["0", "1", "2", "3"]


def test_a_file_that_is_named_twice_is_answered_once_where_it_was_named_first(model: Path, images: Path) -> None:
    rows = asked_json(model, images / "4.png", images)["images"]
    assert [Path(row["file"]).name for row in rows] == ["4.png", "0.png", "2.png", "1.PNG", "3.PNG"]


def test_the_table_shows_file_class_probability_and_score(model: Path, images: Path) -> None:
    row = asked_json(model, images / "0.png", "--top", "2")["images"][0]
    result = asked(model, images / "0.png", "--top", "2")
    assert result.exit_code == 0
    second = row["top"][1]
    shown = [cell.strip() for line in result.stdout.splitlines() if "0.png" in line for cell in line.split("│")[1:-1]]
    shown[3] = shown[3].removesuffix(" *")
    assert shown == [
        *(str(images / "0.png"), row["class"], f"{row['probability']:.3f}", f"{row['open_set_score']:.3f}"),
        f"{second['class']} {second['probability']:.3f}",
    ]
    assert result.stderr == ""


def test_scores_below_what_learnt_classes_reach_are_marked(model: Path, images: Path, tmp_path: Path) -> None:
    found = asked_json(model, images)
    scores = sorted(row["open_set_score"] for row in found["images"])
    measured = json.loads((model / "summary.json").read_text())["open_set_threshold_after_tasks"]
    assert found["model"]["open_set_threshold"] == measured[-1]
    other = tmp_path / "model"
    other.mkdir()
    (other / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes())
    facts = json.loads((model / "model.json").read_text())
    for threshold, marked in ((scores[2], 2), (None, 0)):
        (other / "model.json").write_text(json.dumps(facts | {"open_set_threshold": threshold}))
        lines = asked(other, images).stdout.splitlines()
        assert sum("png" in line.lower() and " * " in line for line in lines) == marked
        assert any("95 % of test images" in line for line in lines) is bool(marked)
    del facts["open_set_threshold"]  # written by an earlier version
    (other / "model.json").write_text(json.dumps(facts))
    assert asked_json(other, images)["model"]["open_set_threshold"] is None


def test_unreadable_files_are_named_and_the_others_answered(model: Path, images: Path, tmp_path: Path) -> None:
    (images / "1-broken.png").write_bytes((images / "0.png").read_bytes()[:60])
    Image.fromarray(np.zeros((4, 4), dtype=np.uint16)).save(images / "1-sixteen.png")
    table = tmp_path / "answers.csv"
    result = asked(model, images, tmp_path / "absent.png", "--json", "--csv", table)
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert len(found["images"]) == 5
    unreadable = ["1-broken.png", "1-sixteen.png", "absent.png"]
    assert [Path(row["file"]).name for row in found["unreadable"]] == unreadable
    assert [line.split()[0] for line in result.stderr.splitlines()] == ["unreadable"] * 3
    assert all(name in result.stderr for name in unreadable)
    with table.open(newline="") as file:
        rows = {Path(row["file"]).name: row for row in csv.DictReader(file)}
    assert len(rows) == 8
    assert all(rows[name]["class"] == "" and rows[name]["error"] for name in unreadable)
    assert all(row["error"] == "" for name, row in rows.items() if name not in unreadable)


def test_when_no_file_can_be_read_all_are_named(model: Path, tmp_path: Path) -> None:
    result = asked(model, tmp_path / "a.png", tmp_path / "b.png", "--csv", tmp_path / "out.csv")
    assert result.exit_code == 1
    assert [line.split()[0] for line in result.stderr.splitlines()] == ["unreadable"] * 2
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 3


def test_csv_has_the_numbers_of_json(model: Path, images: Path, tmp_path: Path) -> None:
    found = asked_json(model, images, "--top", "3", "--csv", tmp_path / "answers.csv")["images"]
    with (tmp_path / "answers.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        *("file", "class", "probability", "open_set_score", "class_2", "probability_2", "class_3", "probability_3"),
        "error",
    ]
    for row, entry in zip(rows, found, strict=True):
        assert (row["file"], row["class"]) == (entry["file"], entry["class"])
        assert float(row["open_set_score"]) == entry["open_set_score"]
        places = [(row["class"], row["probability"])]
        places += [(row[f"class_{place}"], row[f"probability_{place}"]) for place in (2, 3)]
        assert [(name, float(value)) for name, value in places] == [
            (e["class"], e["probability"]) for e in entry["top"]
        ]


def test_a_name_that_is_no_text_is_no_trouble(model: Path, images: Path, tmp_path: Path) -> None:
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff[red].png"))
    odd.write_bytes((images / "0.png").read_bytes())
    result = asked(model, odd, "--csv", tmp_path / "answers.csv")
    assert result.exit_code == 0, result.output
    assert "?[red].png" in result.stdout
    assert b"/\xff[red].png" in (tmp_path / "answers.csv").read_bytes()


def test_mistakes_are_one_paragraph_and_leave_nothing(model: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    for words, said in (
        ((model, empty), "holds no images"),
        ((tmp_path, empty), "cannot read"),
        ((model, empty, "--device", "abacus"), "device: 'abacus' cannot be used"),
    ):
        result = asked(*words, "--csv", tmp_path / "answers.csv")
        assert result.exit_code == 1
        assert said in result.stderr
        assert result.stdout == ""
        assert not (tmp_path / "answers.csv").exists()
    assert asked(model, empty, "--top", "0").exit_code == 2
