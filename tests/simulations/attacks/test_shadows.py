"""Shadow models never saw what they judge, and see the very pixels of the audited run."""

from __future__ import annotations

import numpy as np
import pytest
from small_runs import Finished

from dynammo_core.deployed.predictor import Predictor
from simulations.attacks.audited_run import AuditedRun
from simulations.attacks.findings import Flags
from simulations.attacks.membership import attack_membership
from simulations.attacks.shadows import halves, shadow_models


@pytest.fixture(scope="module")
def run(finished: Finished) -> AuditedRun:
    return AuditedRun.open(finished("streaming_ridge").path)


def test_halves_hold_as_many_of_each_class() -> None:
    labels = np.repeat([0, 1, 2], [10, 7, 1])
    half = halves(labels, 1)
    assert [int(half[labels == label].sum()) for label in range(3)] == [5, 3, 0]
    assert (half != halves(labels, 2)).any()


def test_each_record_lies_outside_one_model_of_a_pair(run: AuditedRun) -> None:
    steps: list[tuple[str, int, int]] = []
    pair: list[tuple[Predictor, Flags]] = list(shadow_models(run, pairs=1, seed=1, tell=lambda *s: steps.append(s)))
    (one, trained), (other, otherwise) = pair
    assert (trained != otherwise).all()
    assert one.classes == other.classes == run.predictor().classes
    assert steps[-1] == ("shadow model 2 of 2", 6, 6)  # two tasks, each with the stages count, sum and evaluate
    # The closed form depends on nothing but its training images: other ones, another model.
    audited, shadow = (p.module.model.state_dict()["heads.classes.weight"] for p in (run.predictor(), one))
    assert not np.allclose(audited, shadow)


def test_a_shadow_of_all_training_images_is_the_audited_model(run: AuditedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """Streaming ridge draws nothing by its seed: on the same pixels it is the same model."""
    monkeypatch.setattr("simulations.attacks.shadows.halves", lambda labels, seed: ~run.records.member)
    settings = run.experiment.config.backbone
    assert settings.weights == "random"
    monkeypatch.setattr("simulations.attacks.shadows.derive_seed", lambda *parts: run.experiment.config.seed)
    shadow, trained = next(iter(shadow_models(run, pairs=1, seed=1, tell=lambda *step: None)))
    assert (trained == run.records.member).all()
    audited, again = (p.module.model.state_dict()["heads.classes.weight"] for p in (run.predictor(), shadow))
    np.testing.assert_allclose(again, audited, rtol=1e-3, atol=1e-5)


def test_the_likelihood_ratio_is_what_the_control_leaves_of_the_confidence(run: AuditedRun) -> None:
    outcome = attack_membership(run, pairs=1, seed=1, tell=lambda *step: None)
    assert {one.attack for one in outcome.findings} == {"loss threshold", "likelihood ratio", "control"}
    control = next(one for one in outcome.findings if one.attack == "control" and one.measure == "AUC")
    assert control.low is not None and control.high is not None
    assert control.low < 0.5 < control.high  # training and test images were drawn alike
