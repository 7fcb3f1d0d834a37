"""What a run leaves: every number follows from the counts, and the deployed model answers as it was measured."""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_runs import ALL_METHODS, SITES, Finished, FinishedRun, small_config

from dynammo_core import __version__
from dynammo_core.code_identity import project_hash
from dynammo_core.data.loading import load_samples
from dynammo_core.data.transforms import to_input
from dynammo_core.deployed.model_files import tensors_sha256
from dynammo_core.experiment import Experiment
from dynammo_core.models.backbones import Backbone
from dynammo_core.models.names import matching
from dynammo_core.scoring.reliability import Reliability
from server.run.results import write_model, write_results
from server.run_directory.directory import RunDirectory
from server.run_directory.progress import Progress

DOCUMENTED = {
    *("method", "dataset", "seed", "tasks", "sites", "average_incremental_accuracy", "last_accuracy", "forgetting"),
    *("backward_transfer", "mean_class_recall", "worst_site_accuracy", "macs_per_image", "trainable_parameters"),
    *("bytes_up", "bytes_down", "rounds", "seconds", "status"),
}
PERCENT = ("average_incremental_accuracy", "last_accuracy", "mean_class_recall", "worst_site_accuracy")
# The small CNN: 3x3 convolutions 3-8-16-32-64 without biases, each with a batch norm of two parameters a channel.
BACKBONE = 9 * (3 * 8 + 8 * 16 + 16 * 32 + 32 * 64) + 2 * (8 + 16 + 32 + 64)
# An adapter of c channels: two 3x3 convolutions without biases, two batch norms, alpha; before blocks 1 to 3.
ADAPTERS = sum(2 * 9 * c * c + 2 * 2 * c + 1 for c in (8, 16, 32))
TASK_HEAD = (64 + 1) * 3  # two classes and "others"
CLASS_HEAD = (64 + 1) * 4
# Each block halves the side, from 16 pixels: 8, 4, 2, 1. An adapter's maps have the side of the block before it.
BACKBONE_MACS = 9 * (3 * 8 * 8**2 + 8 * 16 * 4**2 + 16 * 32 * 2**2 + 32 * 64)
ADAPTER_MACS = 2 * 9 * (8 * 8 * 8**2 + 16 * 16 * 4**2 + 32 * 32 * 2**2)


def strict_json(path: Path) -> dict[str, Any]:
    """JSON as everybody reads it: NaN and Infinity are no numbers there."""

    def refuse(constant: str) -> NoReturn:
        raise ValueError(constant)

    parsed: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    return parsed


def rows(run: FinishedRun, name: str) -> list[dict[str, str]]:
    with (run.path / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


every_method = pytest.mark.parametrize("method", ALL_METHODS)


@every_method
def test_the_summary_has_every_documented_key(finished: Finished, method: str) -> None:
    run = finished(method)
    summary = strict_json(run.path / "summary.json")
    assert set(summary) >= DOCUMENTED
    assert (summary["method"], summary["dataset"], summary["seed"]) == (method, "digits", 1)
    assert (summary["tasks"], summary["sites"], summary["rounds"]) == (2, SITES, len(run.experiment.steps))
    assert (summary["status"], summary["name"]) == ("completed", "small")
    assert all(0 <= summary[key] <= 100 for key in PERCENT)
    assert 0 < summary["seconds"] < 60
    assert summary["config_hash"] == run.config.content_hash
    assert summary["code_hash"] == project_hash()


@every_method
def test_accuracies_follow_from_the_accuracy_matrix(finished: Finished, method: str) -> None:
    run = finished(method)
    cells = rows(run, "accuracy_matrix.csv")
    assert list(cells[0]) == ["site", "after_task", "task", "class", "correct", "total"]
    correct: Counter[tuple[str, str]] = Counter()
    total: Counter[tuple[str, str]] = Counter()
    for cell in cells:
        for key in ((cell["after_task"], "all"), (cell["after_task"], cell["site"])):
            correct[key] += int(cell["correct"])
            total[key] += int(cell["total"])
    accuracy = {key: 100 * correct[key] / total[key] for key in total if total[key]}
    # Ten test images a class: after the first task of two classes 20, after the second 40.
    assert [total["1", "all"], total["2", "all"]] == [20, 40]
    assert run.summary["accuracy_after_tasks"] == pytest.approx([accuracy["1", "all"], accuracy["2", "all"]], abs=1e-3)
    assert run.summary["last_accuracy"] == run.summary["accuracy_after_tasks"][-1]
    assert run.summary["average_incremental_accuracy"] == pytest.approx(
        (accuracy["1", "all"] + accuracy["2", "all"]) / 2, abs=1e-3
    )
    by_site = [value for (task, site), value in accuracy.items() if task == "2" and site != "all"]
    assert run.summary["worst_site_accuracy"] == pytest.approx(min(by_site), abs=1e-3)
    assert run.summary["site_accuracies"] == pytest.approx(by_site, abs=1e-3)


@every_method
def test_confusions_and_accuracies_count_the_same_images(finished: Finished, method: str) -> None:
    run = finished(method)
    correct: Counter[tuple[str, ...]] = Counter()
    total: Counter[tuple[str, ...]] = Counter()
    for row in rows(run, "confusion_matrix.csv"):
        key = (row["site"], row["after_task"], row["true"])
        total[key] += int(row["count"])
        correct[key] += int(row["count"]) * (row["true"] == row["predicted"])
    for cell in rows(run, "accuracy_matrix.csv"):
        key = (cell["site"], cell["after_task"], cell["class"])
        assert (correct[key], total[key]) == (int(cell["correct"]), int(cell["total"]))


@pytest.mark.parametrize(
    ("method", "trainable", "deployed", "macs"),
    [
        (
            "dynammo",
            ADAPTERS + 3 * TASK_HEAD,  # of the second task: the auxiliary head in stage 1, two task heads in stage 2
            BACKBONE + ADAPTERS + 2 * TASK_HEAD,  # the auxiliary head is not deployed
            BACKBONE_MACS + ADAPTER_MACS + 2 * 64 * 3,
        ),
        ("replay", BACKBONE + CLASS_HEAD, BACKBONE + CLASS_HEAD, BACKBONE_MACS + 64 * 4),
    ],
)
def test_costs_are_those_of_the_layers(
    finished: Finished, method: str, trainable: int, deployed: int, macs: int
) -> None:
    summary = finished(method).summary
    assert summary["trainable_parameters"] == trainable
    assert summary["deployed_parameters"] == deployed
    assert summary["macs_per_image"] == macs


# --- the deployable model


@every_method
def test_the_deployed_model_answers_as_it_was_measured(finished: Finished, method: str) -> None:
    """From the files alone, on all test images of the classes seen: the last accuracy, exactly."""
    run = finished(method)
    experiment = Experiment(run.config)
    model = experiment.build_model(1)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)  # whatever is right afterwards came from the file
    held = load_file(run.path / "model.safetensors")
    missing, unexpected = model.load_state_dict(held, strict=False)
    assert unexpected == []
    state = model.state_dict()
    loaded = {state[name].data_ptr() for name in held}  # passes that share a backbone find it under its first name
    lacking = [name for name in missing if state[name].data_ptr() not in loaded]
    assert not matching(lacking, experiment.method.deployed)
    split, seen = experiment.dataset.test, experiment.stream.seen(1)
    samples = load_samples(split, np.flatnonzero(np.isin(split.labels, seen)), 16)
    with torch.no_grad():
        features = model.eval().extractor(to_input(samples.images, run.config.data.normalisation, torch.device("cpu")))
        predicted = experiment.method.decision.predict(model, features).labels
    accuracy = 100 * float((predicted == samples.labels).double().mean())
    assert run.summary["last_accuracy"] == pytest.approx(accuracy, abs=1e-3)


@every_method
def test_the_model_says_what_it_is(finished: Finished, method: str) -> None:
    run = finished(method)
    facts = strict_json(run.path / "model.json")
    assert facts["class_names"] == [str(digit) for digit in range(10)]
    assert facts["tasks"] == [["0", "1"], ["2", "3"]]
    assert (facts["backbone"], facts["insertion_points"]) == ("small_cnn", ["block1", "block2", "block3"])
    assert (facts["image_size"], facts["normalisation"]) == (16, "half")
    assert facts["method"] == run.config.method.model_dump(mode="json")
    assert facts["versions"] == {
        "dynammo": __version__,
        **{name: version(name) for name in ("flwr", "torch", "torchvision", "timm")},
    }
    assert facts["lineage"] == {
        "config_hash": run.config.content_hash,
        "code_hash": project_hash(),
        "backbone_sha256": "random",
        "after_task": 2,
        "tensors_sha256": tensors_sha256(load_file(run.path / "model.safetensors")),
    }
    task_heads, seen = {"task0": [0, 1, -1], "task1": [2, 3, -1]}, [0, 1, 2, 3]
    others: dict[str, dict[str, list[int]]] = {"dynammo": task_heads, "acl": task_heads}
    others["icarl"] = {"classes": seen, "means": seen}
    assert facts["heads"] == others.get(method, {"classes": seen})
    tensors = load_file(run.path / "model.safetensors")
    for name, classes in facts["heads"].items():
        proxies = 10 if method == "podnet" else 1
        assert len(tensors[f"heads.{name}.weight"]) == proxies * len(classes)


def test_the_frozen_backbone_is_in_the_file_as_it_was_loaded(finished: Finished) -> None:
    run = finished("dynammo")
    backbone: Backbone = Experiment(run.config).new_model().extractor.backbone
    tensors = load_file(run.path / "model.safetensors")
    for name, tensor in backbone.state_dict().items():
        assert torch.equal(tensors[f"extractor.backbone.{name}"], tensor), name


# --- unfinished runs


def test_a_run_without_a_single_test_image_has_no_accuracy_but_valid_json(tmp_path: Path) -> None:
    experiment = Experiment(small_config())
    model = experiment.build_model(0)
    nothing = Progress(next_step=5, confusion=[[[0] * 100] * SITES])
    returned = write_results(RunDirectory(tmp_path), experiment, model, nothing, status="running")
    summary = strict_json(tmp_path / "summary.json")
    assert summary == returned
    assert [summary[key] for key in PERCENT] == [None] * len(PERCENT)
    assert summary["status"] == "running"


def test_a_run_that_went_on_under_this_version_has_no_reliability_of_the_tasks_before(tmp_path: Path) -> None:
    # Four answers of 0.9, three right: |3 - 3.6| / 4 = 0.15; all score 0.9, whose log odds, 2.197, are in [2, 2.25).
    sure = np.full(4, 0.9)
    tables = Reliability.counted(sure, np.array([True, True, True, False]), sure, np.empty(0))
    counted = Progress(confusion=[[[0] * 100] * SITES] * 2, reliability={"1": tables.as_numbers()})
    experiment = Experiment(small_config())
    summary = write_results(RunDirectory(tmp_path), experiment, experiment.build_model(1), counted, status="running")
    assert summary["calibration_error_after_tasks"] == [None, 15.0]
    assert summary["open_set_auroc_after_tasks"] == summary["open_set_fpr95_after_tasks"] == [None, None]
    assert summary["open_set_threshold_after_tasks"] == [None, pytest.approx(1 / (1 + math.exp(-2)), abs=1e-9)]
    assert (tmp_path / "calibration.csv").read_text().splitlines()[1:] == ["2,14,4,3,3600"]
    assert (tmp_path / "open_set.csv").read_text().splitlines()[1:] == [f"2,{4 * (16 + 2) + 1},4,0"]


def test_after_the_first_task_the_model_holds_the_first_tasks_head(tmp_path: Path) -> None:
    experiment = Experiment(small_config())
    write_model(RunDirectory(tmp_path), experiment, experiment.build_model(0), 0, Reliability.of({}), {})
    facts = strict_json(tmp_path / "model.json")
    assert (facts["tasks"], facts["heads"]) == ([["0", "1"]], {"task0": [0, 1, -1]})
    assert facts["lineage"]["after_task"] == 1
    heads = {name for name in load_file(tmp_path / "model.safetensors") if name.startswith("heads.")}
    assert heads == {"heads.task0.weight", "heads.task0.bias"}
