"""Heads that a site trains for itself after a task: one more round of the balanced stage, kept here and tested here."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from hospitals import deployed, make_hospitals
from small_runs import instruction, run_small, small_config, small_site, step_of
from torch import Tensor

from client.commands.predict import as_tested, warnings_about
from client.consent.policy import Policy, violations
from client.consent.settings import load_site
from client.state.known_images import LEDGER_FILE
from client.state.statistics_file import HEAD, HELD, own_tensors_for_model
from client.steps import own_heads
from client.steps.actions import answer
from client.steps.assignment import receive
from client.steps.own_heads import one_more_round
from dynammo_core.deployed.model_files import ModelFiles, answering_tensors, tensors_sha256
from dynammo_core.deployed.predictor import Predictor
from dynammo_core.experiment import Experiment
from dynammo_core.methods.rehearsal import balanced
from dynammo_core.plan import PERSONAL, Evaluate
from dynammo_core.support.errors import ConfigError
from dynammo_core.wire.protocol import Report, names_up
from server.report.data_flow import data_flow
from server.report.report import write_report
from server.run.own_heads import COMMON

OWN = {"method.personal": True}
METHODS = ("dynammo", "acl")
ALWAYS = Mock(return_value=(torch.ones(1), torch.zeros(1)))
"""In the place of `gains`: every head serves its site better."""
EMPTY_SITE = 1
"""The site that holds a single image of the first task."""


def kept_heads(experiment: Experiment, site: int, workspace: Path) -> dict[str, Tensor]:
    """What the site keeps beside the model of the first task."""
    model = tensors_sha256(answering_tensors(experiment.method, experiment.build_model(0)))
    return own_tensors_for_model(workspace, task=0, model=model, site=f"site-{site:03d}", key=None, content=HEAD)


def report_of(experiment: Experiment, site: int, workspace: Path) -> Report:
    sent = instruction(experiment, step_of(experiment, 0, "evaluate"), site, workspace)
    return answer(sent, small_site(experiment, site, workspace))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("remembered", [False, True])
def test_they_are_what_the_last_round_would_send_up_once_more(
    method: str, remembered: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_heads, "gains", ALWAYS)  # few images would gain nothing
    experiment = Experiment(small_config(method, OWN))
    last = step_of(experiment, 0, "balance", 1)
    sent_up = answer(instruction(experiment, last, 0, tmp_path), small_site(experiment, 0, tmp_path))
    if remembered:
        step = step_of(experiment, 0, "remember")
        answer(instruction(experiment, step, 0, tmp_path), small_site(experiment, 0, tmp_path))
    report = report_of(experiment, 0, tmp_path)
    kept = kept_heads(experiment, 0, tmp_path)
    assert kept.pop(HELD).tolist() == [0, 1]
    assert kept.keys() == sent_up.weights.keys()
    assert all(torch.equal(kept[name], tensor) for name, tensor in sent_up.weights.items())
    assert not report.weights  # none of it leaves
    assert report.numbers[PERSONAL] != report.numbers["confusion"]


def test_what_helps_on_no_image_left_out_is_not_kept(tmp_path: Path) -> None:
    """Labels drawn at random can be learnt by heart, and of images left out nothing is learnt."""
    experiment = Experiment(small_config("dynammo", {**OWN, "method.balance.epochs": 100}))
    sent = instruction(experiment, step_of(experiment, 0, "evaluate"), 0, tmp_path)
    assignment = receive(sent, small_site(experiment, 0, tmp_path))
    assert isinstance(assignment.step.stage, Evaluate)
    stage = assignment.step.stage.own_round
    assert stage is not None
    state = assignment.model.state_dict()
    for name in names_up(assignment.model, stage):  # what knows no more than that there are two classes, and no others
        state[name].zero_()
    state["heads.task0.bias"][-1] = -9.0
    images = balanced(assignment.site.rehearsal(0))
    drawn = torch.arange(len(images)) % 2
    assert one_more_round(assignment, stage, replace(images, labels=drawn)) == {}
    assert one_more_round(assignment, stage, images)


@pytest.mark.parametrize(("gain", "kept"), [(1.1, True), (0.9, False), (-2.0, False)])
def test_heads_are_kept_if_they_gain_more_than_one_standard_error(
    gain: float, kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_heads, "gains", lambda *_: (torch.tensor([gain]), torch.ones(1)))
    experiment = Experiment(small_config("dynammo", OWN))
    report = report_of(experiment, 0, tmp_path)
    assert bool(kept_heads(experiment, 0, tmp_path)) is kept
    assert (report.numbers[PERSONAL] != report.numbers["confusion"]) is kept


def test_images_of_one_patient_are_never_in_two_folds_and_count_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = list[Sequence[str]]()
    for name in ("folds", "gains"):
        wanted = getattr(own_heads, name)
        monkeypatch.setattr(own_heads, name, lambda *given, wanted=wanted: (seen.append(given[-1]), wanted(*given))[1])
    experiment = Experiment(small_config("dynammo", OWN))
    sent = instruction(experiment, step_of(experiment, 0, "evaluate"), 0, tmp_path)
    assignment = receive(sent, small_site(experiment, 0, tmp_path))
    assert isinstance(assignment.step.stage, Evaluate) and assignment.step.stage.own_round is not None
    images = balanced(assignment.site.rehearsal(0))
    patients = tuple(f"patient {place // 2}" for place in range(len(images)))
    one_more_round(assignment, assignment.step.stage.own_round, replace(images, patients=patients))
    assert seen == [patients, patients]


def test_a_class_without_images_at_a_site_is_recognised_there_as_at_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_heads, "gains", ALWAYS)  # or few images would leave the common heads
    held = {"0": 0, "1": 0, "2": 15, "3": 15}
    hospitals = make_hospitals(tmp_path, {"alpha": held, "beta": dict.fromkeys("0123", 12)})
    config = deployed(list(hospitals.files), ["0", "1", "2", "3"], "dynammo", {"method": {"personal": True}})
    model = run_small(config, tmp_path / "runs", grid=hospitals).path
    files, own = as_tested(ModelFiles.read(model), load_site(hospitals.files["alpha"]))
    assert own is not None and own.held.tolist() == [2, 3]
    site, common = Predictor.of_files(files, own=own), Predictor.of_files(files)
    images = site.read(sorted((tmp_path / "beta" / "images").glob("*.png")))
    answered, usual = site.predict(images), common.predict(images)
    assert answered.labels.tolist() != usual.labels.tolist()
    for label in (0, 1):
        assert torch.equal(answered.labels == label, usual.labels == label) and bool((usual.labels == label).any())
    # Marks of what is like nothing learnt are by a threshold that was counted with the common heads.
    assert torch.equal(answered.open_set_scores, usual.open_set_scores)
    words = "alpha has a head of its own, made without images of 0, 1"
    assert words in warnings_about(site, "alpha")[0] and warnings_about(common, None) == []
    summary = json.loads((model / "summary.json").read_text())
    # The test image of a class is the one after those to train on.
    tested = site.read([tmp_path / "alpha" / "images" / f"alpha-{label}-{place}.png" for label, place in held.items()])
    right = (site.predict(tested).labels == torch.arange(4)).double().mean()
    assert summary["own_heads"][0][PERSONAL]["accuracy"] == pytest.approx(100 * float(right))


def test_a_site_without_images_to_train_on_keeps_none_and_answers_as_all_do(tmp_path: Path) -> None:
    experiment = Experiment(small_config("dynammo", OWN))
    report = report_of(experiment, EMPTY_SITE, tmp_path)
    assert kept_heads(experiment, EMPTY_SITE, tmp_path) == {}
    assert report.numbers[PERSONAL] == report.numbers["confusion"]


def test_a_site_that_only_tests_trains_nothing_for_itself(tmp_path: Path) -> None:
    hospitals = make_hospitals(tmp_path, dict.fromkeys(("alpha", "beta", "gamma"), dict.fromkeys("0123", 5)))
    settings = {"method": {"personal": True}, "federation": {"evaluate_only": ["gamma"]}}
    config = deployed(list(hospitals.files), ["0", "1", "2", "3"], "dynammo", settings)
    run = run_small(config, tmp_path / "runs", grid=hospitals).path
    gamma = json.loads((run / "summary.json").read_text())["own_heads"][-1]
    assert gamma[PERSONAL] == gamma[COMMON] != {"accuracy": None, "mean_class_recall": None}
    kept = [bool(list(load_site(file).memory.folder.rglob(LEDGER_FILE))) for file in hospitals.files.values()]
    assert kept == [True, True, False]


@pytest.mark.parametrize("method", METHODS)
def test_the_common_model_is_the_same_and_the_page_shows_both(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_heads, "gains", ALWAYS)  # few images would gain nothing
    own, plain = (run_small(small_config(method, settings), tmp_path) for settings in (OWN, {}))
    summary, usual = (json.loads((run.path / "summary.json").read_text()) for run in (own, plain))
    for key in ("accuracy_after_tasks", "site_mean_class_recalls", "bytes_up", "bytes_down", "rounds"):
        assert summary[key] == usual[key]
    rows = summary["own_heads"]
    assert [row[COMMON]["mean_class_recall"] for row in rows] == summary["site_mean_class_recalls"]
    assert any(row[PERSONAL] != row[COMMON] for row in rows)
    assert all(row["joining"] is row["alone"]["accuracy"] is None for row in rows)
    assert "own_heads" not in usual
    page = write_report(own.path).read_text()
    assert "What a site would have alone this method does not tell" in page
    assert "Whether joining pays" not in page
    said = "Each site trains the heads for one more round on its own images".lower()
    assert [said in " ".join(data_flow(run.path).lower().split()) for run in (own, plain)] == [True, False]


def test_no_sums_come_down_for_them_so_any_policy_may_allow_it() -> None:
    config = deployed(["alpha", "beta"], ["0", "1", "2", "3"], "dynammo", {"method": {"personal": True}})
    assert violations(Policy(), config) == []


def test_noise_would_not_hide_what_their_tests_tell() -> None:
    for method in METHODS:
        private = {**OWN, "method.norm": "group", "privacy.mechanism": "client"}
        with pytest.raises(ConfigError, match=r"set method.personal: false"):
            small_config(method, private)
        small_config(method, {**private, "method.personal": False})
