"""`dynammo-site predict` on real image files: every file is answered or named, in every form of output."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import typer
from click.testing import Result
from hospitals import Hospitals, deployed, make_hospitals
from PIL import Image
from small_runs import Finished, run_id, run_small
from torch import Tensor
from typer.testing import CliRunner

from client.commands.predict import as_tested, predict, warnings_about
from client.consent.settings import load_site
from client.state.run_folders import runs_folder
from client.state.statistics_file import discard_heads
from client.steps import own_heads
from client.steps.assignment import Assignment
from dynammo_core.data.samples import Samples
from dynammo_core.data.transforms import to_input
from dynammo_core.deployed.model_files import ModelFiles
from dynammo_core.deployed.predictor import Predictor
from dynammo_core.methods import closed_form_personal
from dynammo_core.models.names import Level
from dynammo_core.models.ridge.head import RidgeHead
from dynammo_core.support.errors import MemoryStoreError
from server.jobs.evaluate import evaluate_run

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
    # A long path is broken, and nothing else; the table is as wide as a terminal of 80 columns.
    first, *rest = [line for line in result.stdout.splitlines() if line.strip() and not line.startswith("*")][2:]
    shown = first.replace(" * ", " ").split()
    assert shown[1:] == [
        *(row["class"], f"{row['probability']:.3f}", f"{row['open_set_score']:.3f}"),
        *(second["class"], f"{second['probability']:.3f}"),
    ]
    assert "".join([shown[0], *(line.strip() for line in rest)]) == str(images / "0.png")
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
        assert sum(line.rstrip().endswith(" *") for line in lines) == marked
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
    passed_over, *others = result.stderr.splitlines()
    assert passed_over == "passed over: files of other kinds: 1 .txt"
    assert [line.split()[0] for line in others] == ["unreadable"] * 3
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
    assert result.stdout == "", "no table without a row"
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


def test_a_name_that_is_not_utf8_is_spelt_out(model: Path, images: Path, tmp_path: Path) -> None:
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff[red].png"))
    odd.write_bytes((images / "0.png").read_bytes())
    result = asked(model, odd, "--csv", tmp_path / "answers.csv")
    assert result.exit_code == 0, result.output
    assert r"\xff[red].png" in result.stdout.replace("\n", "")
    assert r"/\xff[red].png" in (tmp_path / "answers.csv").read_text(encoding="utf-8")
    (image,) = json.loads(asked(model, odd, "--json").stdout)["images"]
    assert image["file"] == rf"{tmp_path}/\xff[red].png"


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


# --- statistics of the site's own

HELD = dict.fromkeys("0123", 5)
Tested = dict[tuple[str, int], tuple[Samples, torch.Tensor]]


def run_among(
    hospitals: Hospitals, own: str, runs: Path, monkeypatch: pytest.MonkeyPatch, method: str, **federation: str
) -> tuple[Path, Tested]:
    """A run among hospitals, and by site and task what it tested, with the probabilities of all rows."""
    parts: dict[tuple[str, int], list[tuple[Samples, torch.Tensor]]] = {}
    embed = Assignment.embed_once

    def watched(assignment: Assignment, samples: Samples, end: Level) -> torch.Tensor:
        features, task = embed(assignment, samples, end), assignment.step.task
        if assignment.step.stage.name == "evaluate" and set(samples.labels.tolist()) <= set(
            assignment.experiment.stream.seen(task)
        ):
            name = assignment.experiment.config.federation.site_label(assignment.site.index)
            rows = torch.cat(assignment.experiment.method.decision.probabilities(assignment.model, features), dim=1)
            parts.setdefault((name, task + 1), []).append((samples, rows))
        return features

    monkeypatch.setattr(Assignment, "embed_once", watched)
    sections = {"scanners": {"own_statistics": own}, "federation": federation}
    config = deployed(list(hospitals.files), list(HELD), method, sections)
    run = run_small(config, runs, grid=hospitals).path
    return run, {
        key: (Samples.concatenate([samples for samples, _ in own]), torch.cat([rows for _, rows in own]))
        for key, own in parts.items()
    }


@torch.no_grad()
def all_rows(predictor: Predictor, samples: Samples) -> torch.Tensor:
    module, normalisation = predictor.module, predictor.facts.normalisation
    features = module.model.extractor(to_input(samples.images, normalisation, torch.device("cpu")))
    return torch.cat(module.method.decision.probabilities(module.model, features), dim=1)


@pytest.mark.parametrize(
    ("own", "method", "federation"),
    [
        ("trained", "dynammo", {}),
        ("frozen", "streaming_ridge", {"compression": "float16"}),
        ("all", "dynammo", {"compression": "int8_both"}),
    ],
    ids=["trained", "frozen", "all"],
)
def test_a_model_answers_as_its_site_tested_it(
    own: str, method: str, federation: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hospitals = make_hospitals(tmp_path, {"alpha": HELD, "beta": HELD})
    run, seen = run_among(hospitals, own, tmp_path / "runs", monkeypatch, method, **federation)
    tolerance = 5e-3 if federation else 1e-5  # where rounding on the way to the sites changed the weights they tested
    for folder, task in ((run, 2), (run / "models" / "task-01", 1)):  # the operator may go back to an earlier model
        files = ModelFiles.read(folder)
        for name, site_yaml in hospitals.files.items():
            samples, expected = seen[name, task]
            assert len(samples) == 2 * task  # one test image of each class
            found = all_rows(Predictor.of_files(as_tested(files, load_site(site_yaml))[0]), samples)
            common = all_rows(Predictor.of_files(files), samples)
            difference = float((found - expected).abs().max())
            assert difference < tolerance
            assert float((common - expected).abs().max()) > max(10 * difference, 1e-3)


def test_the_command_takes_the_sites_statistics_and_warns_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hospitals = make_hospitals(tmp_path, {"alpha": HELD, "beta": HELD})
    run, seen = run_among(hospitals, "all", tmp_path / "runs", monkeypatch, "replay")
    alpha, beta = hospitals.files.values()
    images = [tmp_path / "alpha" / "images" / f"alpha-{label}-5.png" for label in HELD]
    own, without = asked(run, *images, "--site", alpha, "--json"), asked(run, *images, "--json")
    assert own.exit_code == without.exit_code == 0
    found, common = json.loads(own.stdout), json.loads(without.stdout)
    assert (found["model"]["statistics_of"], found["warnings"], own.stderr) == ("alpha", [], "")
    _, expected = seen["alpha", 2]
    assert [row["probability"] for row in found["images"]] == pytest.approx(
        expected.max(dim=1).values.tolist(), abs=1e-5
    )
    assert common["model"]["statistics_of"] is None
    assert [row["probability"] for row in common["images"]] != pytest.approx(
        expected.max(dim=1).values.tolist(), abs=1e-3
    )
    assert without.stderr.startswith("warning The sites tested this model with batch-norm statistics of their own")
    assert common["warnings"] == [without.stderr.removeprefix("warning ").rstrip()]
    # Neither statistics of another model will do, nor those of another site.
    facts = run / "model.json"
    facts.write_text(facts.read_text().replace('"tested_sha256": "', '"tested_sha256": "0'))
    refused = asked(run, *images, "--site", alpha)
    assert refused.exit_code == 1
    said = f"the statistics with which alpha tested this model after its task 2; it keeps those of {run_id(run)}"
    assert said in " ".join(refused.stderr.split())
    facts.write_text(facts.read_text().replace('"tested_sha256": "0', '"tested_sha256": "'))
    beta.write_text(beta.read_text().replace("site: beta", "site: gamma"))
    refused = asked(run, *images, "--site", beta)
    assert (refused.exit_code, "belongs to" in refused.stderr) == (1, True)


def test_a_site_answers_with_the_head_that_it_solved_for_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads, answers = list[Mapping[str, Tensor]](), closed_form_personal._answers

    def noted(head: RidgeHead) -> Mapping[str, Tensor]:
        heads.append(answers(head))
        return heads[-1]

    monkeypatch.setattr(closed_form_personal, "best_beta", lambda *_: math.inf)  # few images would choose 0
    monkeypatch.setattr(closed_form_personal, "_answers", noted)
    hospitals = make_hospitals(tmp_path, dict.fromkeys(("alpha", "beta", "gamma"), HELD))
    settings = {"method": {"personal": True, "regulariser": 1.0}, "federation": {"compression": "float16"}}
    config = deployed(list(hospitals.files), list(HELD), "streaming_ridge", settings)
    run = run_small(config, tmp_path / "runs", grid=hospitals).path
    files = ModelFiles.read(run)
    solved = heads[-6::2]  # each site's own and the one it would have alone, after the last task
    for site_yaml, wanted in zip(hospitals.files.values(), solved, strict=True):
        tested, own = as_tested(files, load_site(site_yaml))
        assert own is not None and own.held.tolist() == [0, 1, 2, 3]
        assert own.tensors.keys() == wanted.keys() and all(
            torch.equal(own.tensors[name], wanted[name]) for name in wanted
        )
        assert tested.tensors == files.tensors
    discard_heads(runs_folder(load_site(site_yaml).memory.folder))  # as a purge does
    with pytest.raises(MemoryStoreError, match="does not hold the head"):
        as_tested(files, load_site(site_yaml))
    evaluate_run(hospitals, config, run, tmp_path / "tested.json")  # answered from the record, but for the head
    again = as_tested(files, load_site(site_yaml))[1]
    assert again is not None and all(torch.equal(again.tensors[name], own.tensors[name]) for name in wanted)


def test_a_site_answers_with_the_heads_that_it_trained_for_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_heads, "gains", lambda *_: (torch.ones(1), torch.zeros(1)))  # few images would gain nothing
    hospitals = make_hospitals(tmp_path, dict.fromkeys(("alpha", "beta", "gamma"), HELD))
    settings = {"method": {"personal": True}, "federation": {"compression": "float16"}}
    config = deployed(list(hospitals.files), list(HELD), "dynammo", settings)
    files = ModelFiles.read(run_small(config, tmp_path / "runs", grid=hospitals).path)
    for site_yaml in hospitals.files.values():
        own = as_tested(files, load_site(site_yaml))[1]
        assert own is not None
        others = {name for name, tensor in own.tensors.items() if not torch.equal(tensor, files.tensors[name])}
        assert others == {f"heads.task{task}.{part}" for task in range(2) for part in ("weight", "bias")}


def test_a_model_without_such_statistics_needs_no_site(model: Path, images: Path, tmp_path: Path) -> None:
    site_yaml = make_hospitals(tmp_path, {"alpha": HELD}).files["alpha"]
    assert asked_json(model, images, "--site", site_yaml) == asked_json(model, images)
    assert asked_json(model, images)["warnings"] == []


def test_a_network_of_another_timm_is_named(model: Path) -> None:
    facts = ModelFiles.read(model).facts
    other = facts.model_copy(update={"backbone": "timm/test_vit", "versions": {"timm": "0.9.1"}})
    for described, expected in ((facts, False), (other, True), (other.model_copy(update={"versions": {}}), False)):
        words = warnings_about(SimpleNamespace(facts=described, held=()), own=None)
        assert bool(words) is expected and all("Install timm==0.9.1" in line for line in words)


def test_files_of_other_runtimes_are_opened_or_refused_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "foreign.onnx").write_bytes(b"no graph")
    (tmp_path / "model.pt").write_bytes(b"PK code in a zip")
    for words, said in (
        (("foreign.onnx",), "is no ONNX file that this project exported"),
        (("foreign.onnx", "--device", "cuda:1"), "--device cuda:1: an ONNX file is asked on the CPU"),
        (("missing.onnx",), "cannot read"),
        (("model.pt",), "not TorchScript, since opening such a file can run code"),
    ):
        result = asked(tmp_path / words[0], *words[1:], tmp_path)
        assert result.exit_code == 1
        assert said in result.output, result.output
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    result = asked(tmp_path / "foreign.onnx", tmp_path)
    assert "onnxruntime is needed, which is not installed" in result.output
    assert "pip install '.[onnx]'" in result.output
