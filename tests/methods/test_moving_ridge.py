"""Sums that follow adapters: still where these are, near to sums taken anew where they change, however sites split."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from method_bench import CPU, STREAM, Bench, bench, halves, learn, rehearsal, toy_images
from torch import Tensor

from dynammo_core.configuration.config import resolve
from dynammo_core.methods.base import TEACHER_PREFIX
from dynammo_core.methods.closed_form import ridge_head
from dynammo_core.methods.closed_form_sums import SUMS
from dynammo_core.methods.moving_ridge import PAIRS
from dynammo_core.models.ridge.head import RidgeHead
from dynammo_core.plan import Summarise
from dynammo_core.scoring.evaluation import embed_samples
from dynammo_core.support.errors import ConfigError

QUICK: dict[str, Any] = {"adapt": {"epochs": 2, "learning_rate": 0.1}, "regulariser": 0.1}


def names(made: Bench, task: int) -> list[str]:
    return [stage.name for stage in made.method.all_stages(task)]


def totals(made: Bench) -> dict[str, Tensor]:
    return {name: made.archive[name].clone() for name in SUMS}


def pairs_of(made: Bench, sites: int = 1) -> None:
    """The stage in which sites sum over both features, each over its share of the exemplars and new images."""
    stage = made.stage(PAIRS, 1)
    assert isinstance(stage, Summarise)
    images = stage.learns_from(rehearsal(1))
    made.summarise(stage, halves(images) if sites == 2 else [images])
    made.finish(PAIRS, 1)


def anew(made: Bench, task: int) -> RidgeHead:
    """The sums of all images so far under the features as they are."""
    head = RidgeHead(made.model.feature_dim, STREAM.seen(task))
    head.sample_weight.copy_(ridge_head(made.model).sample_weight)
    images = toy_images(STREAM.seen(task))
    head.add(embed_samples(made.model, images, "half", CPU), images.labels)
    return head


def off(made: Bench, task: int) -> float:
    """By how much the sums are off those taken anew, relative to these."""
    wanted = anew(made, task).gram
    return float((ridge_head(made.model).gram - wanted).norm() / wanted.norm())


def test_features_before_and_after_are_summed_from_the_second_task_on() -> None:
    made = bench("moving_ridge")
    assert names(made, 0) == ["adapt", "count", "sum", "remember", "evaluate"]
    assert names(made, 1) == ["adapt", "recalibrate", PAIRS, "count", "sum", "remember", "evaluate"]
    for still in ({"past": "kept"}, {"past": "anew"}, {"adapters": False}):
        assert PAIRS not in names(bench("moving_ridge", **still), 1)


def test_sums_stay_where_adapters_stay() -> None:
    made, frozen = bench("moving_ridge", **QUICK), bench("moving_ridge", adapters=False, regulariser=0.1)
    learn(made, 1)
    made.begin(1)
    before = totals(made)
    taught = {n.removeprefix(TEACHER_PREFIX): t for n, t in made.archive.items() if n.startswith(TEACHER_PREFIX)}
    made.model.load_state_dict(taught, strict=False)
    pairs_of(made)
    torch.testing.assert_close(totals(made), before, rtol=1e-12, atol=1e-12)
    learn(frozen, 2)
    torch.testing.assert_close(ridge_head(frozen.model).gram, anew(frozen, 1).gram, rtol=1e-9, atol=1e-12)


def test_moved_sums_are_near_those_taken_anew_and_kept_ones_are_not() -> None:
    moved, kept, without = (
        bench("moving_ridge", **QUICK, **more) for more in ({}, {"past": "kept"}, {"residual": False})
    )
    for made in (moved, kept, without):
        learn(made, 3)
    assert off(moved, 2) < 0.5 * off(kept, 2)
    assert not torch.equal(ridge_head(moved.model).gram, ridge_head(without.model).gram)
    assert moved.accuracy(toy_images(STREAM.seen(2), seed=1)) > 0.6


def test_the_bound_sums_all_past_images_under_the_features_as_they_are() -> None:
    made = bench("moving_ridge", **QUICK, past="anew")
    learn(made, 3)
    torch.testing.assert_close(ridge_head(made.model).gram, anew(made, 2).gram, rtol=1e-9, atol=1e-12)


def test_sums_move_the_same_however_sites_hold_the_pairs() -> None:
    one, two = (bench("moving_ridge", **QUICK) for _ in range(2))
    for made, sites in ((one, 1), (two, 2)):
        learn(made, 1)
        made.begin(1)
        made.fit(made.fits(1)[0], 1, rehearsal(1).new)
        pairs_of(made, sites)
    torch.testing.assert_close(totals(one), totals(two), rtol=1e-6, atol=1e-9)
    assert PAIRS not in one.model.heads


def test_a_head_of_a_sites_own_is_refused_as_its_images_are_no_longer_in_the_sums() -> None:
    with pytest.raises(ConfigError, match=r"set method.personal: false"):
        resolve({"method": {"name": "moving_ridge", "personal": True}}, "test", {})


def test_summing_all_past_images_again_is_for_simulations() -> None:
    sites = {"federation": {"site_names": ["a", "b", "c"]}, "data": {"dataset": "manifest", "classes": ["x", "y"]}}
    with pytest.raises(ConfigError, match="past: anew sums all past images"):
        resolve({"name": "t", "method": {"name": "moving_ridge", "past": "anew"}, **sites}, "test", {})
