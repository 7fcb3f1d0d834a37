"""Membership attacks find what a model that knows its images by heart betrays, and nothing where there is nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_runs import Finished, run_small, small_config

from simulations.attacks.audited_run import AuditedRun
from simulations.attacks.findings import ignore_progress
from simulations.attacks.membership import attack_membership, class_weights, confidences, judge, rates

# Five images a class, learnt by heart by a whole network: the others remain a riddle to it.
BY_HEART = {"data.train_per_class": 5, "data.test_per_class": 36, "federation.sites": 1, "method.train.epochs": 40}


@pytest.fixture(scope="module")
def overfitted(tmp_path_factory: pytest.TempPathFactory) -> AuditedRun:
    config = small_config("joint", BY_HEART)
    return AuditedRun.open(run_small(config, tmp_path_factory.mktemp("overfitted")).path)


def test_what_was_learnt_by_heart_is_found(overfitted: AuditedRun) -> None:
    outcome = attack_membership(overfitted, pairs=0, seed=1, tell=ignore_progress)
    found = {(one.target, one.measure): one for one in outcome.findings}
    assert set(found) == {("other training images", "AUC"), ("other training images", "TPR at 1 % FPR")}
    area = found["other training images", "AUC"]
    assert (area.members, area.others) == (4 * 5, int((~overfitted.records.member).sum()))
    assert area.value > 0.75
    assert area.low is not None and area.low > 0.65


def test_shuffled_membership_is_not_found(overfitted: AuditedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same scores, members by lot: of 20 intervals of 95 % 19 or so hold a coin's 0.5 (under 17: once in 60)."""
    monkeypatch.setattr("simulations.attacks.membership.RESAMPLES", 100)
    records = overfitted.records
    labels, scores = records.samples.labels.numpy(), confidences(overfitted.predictor(), records.samples)
    areas = []
    for seed in range(20):
        drawn = np.random.default_rng(seed).permutation(records.member)
        areas.append(judge(scores, drawn, labels, attack="a", target="t", seed=seed)[0])
    assert sum((one.low or 1) < 0.5 < (one.high or 0) for one in areas) > 16
    assert np.mean([one.value for one in areas]) == pytest.approx(0.5, abs=0.05)


def test_exemplars_are_told_from_other_training_images(finished: Finished) -> None:
    run = AuditedRun.open(finished("dynammo").path)
    kept = [record for site in run.sites for record in site.memory().record_ids]
    assert int(run.records.exemplar.sum()) == len(kept) > 0
    assert not (run.records.exemplar & ~run.records.member).any()
    found = {one.target: one for one in attack_membership(run, pairs=0, seed=1, tell=ignore_progress).findings}
    assert found["exemplars"].members == len(kept)
    assert found["other training images"].members == int(run.records.member.sum()) - len(kept)
    assert {one.others for one in found.values()} == {4 * 10}


@pytest.mark.parametrize("method", ["dynammo", "icarl", "streaming_ridge"])
def test_confidences_are_those_of_the_deployed_answers(finished: Finished, method: str) -> None:
    run = AuditedRun.open(finished(method).path)
    predictor, samples = run.predictor(), run.records.samples
    answers = predictor.predict(samples.images)
    learnt = [run.experiment.class_names.index(name) for name in predictor.classes]
    columns = [learnt.index(label) for label in samples.labels.tolist()]
    true = answers.probabilities[torch.arange(len(samples)), columns].double()
    surety = confidences(predictor, samples)
    assert len(np.unique(surety)) == len(surety)  # nothing ties
    sure = np.abs(surety) < 8  # beyond, the single precision of the answers shows
    assert sure.mean() > 0.5
    np.testing.assert_allclose(surety[sure], torch.logit(true).numpy()[sure], rtol=1e-2, atol=1e-3)


def test_rates_by_hand() -> None:
    """Of 2 x 4 pairs 7 stand in the right order; one of two members stands before all others."""
    member = np.array([True, True, False, False, False, False])
    area, rate = rates(np.array([9.0, 3.0, 4.0, 2.0, 1.0, 0.0]), member, np.ones(6))
    assert area == pytest.approx(7 / 8)
    assert rate == 0.5


def test_easier_classes_are_no_leak() -> None:
    """All scores say the class and nothing else, and members are mostly of class 1: unweighted that looks like 0.8."""
    labels = np.repeat([1, 0, 1, 0], [90, 10, 30, 70])
    member = np.arange(200) < 100
    assert rates(labels.astype(float), member, np.ones(200))[0] == pytest.approx(0.8)
    assert rates(labels.astype(float), member, class_weights(labels, member))[0] == pytest.approx(0.5)


def test_a_class_that_nobody_else_has_an_image_of_does_not_count() -> None:
    labels = np.array([0, 0, 1, 1, 0])
    member = np.array([True, True, True, True, False])
    assert class_weights(labels, member).tolist() == [1, 1, 0, 0, 2]
