"""Sums in which each class weighs the same: against one weighed regression of all images, whatever sites and tasks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from method_bench import EACH, STREAM, Bench, answer, bench, halves, learn_sums, toy_images, uneven
from torch import Tensor

from dynammo_core.data.samples import Samples
from dynammo_core.data.task_stream import TaskStream
from dynammo_core.methods import METHODS
from dynammo_core.methods.closed_form_sums import SUMS, WEIGHTS
from dynammo_core.models.ridge.head import RidgeHead
from dynammo_core.support.errors import ConfigError

WEIGHT = {0: 1 / 16, 1: 1 / 2, 2: 1 / 4, 3: 1 / 8}
"""The power of 2 nearest to one over that, by their logarithms."""


def learn(made: Bench, task: int, sites: list[Samples]) -> None:
    learn_sums(made, task, sites, ("count", "sum"))


def head_of(made: Bench) -> RidgeHead:
    assert isinstance(made.head, RidgeHead)
    return made.head


@pytest.mark.parametrize(
    ("method", "more"), [("streaming_ridge", {"tukey": 0.5, "mirrored": True}), ("first_session", {})]
)
def test_each_class_weighs_about_the_same_however_many_images_sites_and_tasks(method: str, more: Any) -> None:
    made = bench(method, regulariser=0.1, **more)
    for task in (0, 1):
        learn(made, task, halves(uneven(STREAM.classes(task))))
    head = head_of(made)
    everything = uneven((0, 1, 2, 3))
    with torch.no_grad():
        features = made.inputs(made.stage("sum", 0), everything)
    pooled = RidgeHead(features.shape[1], head.rows)
    pooled.sample_weight.copy_(torch.tensor([WEIGHT[row] for row in head.rows], dtype=torch.float64))
    pooled.add(features, everything.labels)
    pooled.solve(0.1, torch.full((4,), 0.25, dtype=torch.float64))
    assert head.products[:, -1].tolist() == [EACH[row] * WEIGHT[row] for row in head.rows]
    torch.testing.assert_close(head.gram, pooled.gram, atol=1e-12, rtol=1e-9)
    torch.testing.assert_close(head.weight, pooled.weight, atol=1e-6, rtol=1e-5)


def test_a_class_keeps_its_weight_when_it_reaches_another_site_later() -> None:
    made = bench("streaming_ridge")
    learn(made, 0, [uneven((0, 1))])
    late = toy_images((1,), each=3, seed=1)
    learn(made, 1, [Samples.concatenate([uneven((2, 3)), late])])
    assert made.archive[WEIGHTS].tolist() == list(WEIGHT.values())
    head = head_of(made)
    assert head.counts.tolist() == [20, 5, 5, 11]
    torch.testing.assert_close(head.products[:, -1], torch.tensor([20 / 16, 5 / 2, 5 / 4, 11 / 8], dtype=torch.float64))
    assert head.sample_weight.tolist() == made.archive[WEIGHTS].tolist()  # which withdrawn images are weighed with
    made.begin(2)
    assert head_of(made).sample_weight[:4].tolist() == made.archive[WEIGHTS].tolist()


def test_a_class_that_no_site_has_yet_gets_its_weight_when_one_has() -> None:
    made = bench("streaming_ridge")
    learn(made, 0, [uneven((0,))])
    assert made.archive[WEIGHTS].tolist() == [1 / 16, 0]
    learn(made, 1, [uneven((1, 2, 3))])
    assert made.archive[WEIGHTS].tolist() == list(WEIGHT.values())


def total(made: Bench) -> dict[str, Tensor]:
    return {name: made.archive[name] for name in SUMS}


def private(**params: Any) -> Bench:
    """The same method where images are protected; its noise is left out, so that sums can be compared."""
    plain = bench("streaming_ridge", **params)
    privacy = plain.method.privacy.model_copy(update={"mechanism": "example"})
    return Bench(METHODS["streaming_ridge"](plain.method.params, STREAM, privacy), plain.model)


def test_under_privacy_no_weight_is_above_1_and_the_totals_are_the_same() -> None:
    plain, protected = bench("streaming_ridge"), private()
    for task in (0, 1):
        sites = halves(uneven(STREAM.classes(task)))
        learn(plain, task, sites)
        protected.begin(task)
        answer(protected, "count", task, sites)
        assert head_of(protected).sample_weight.max() == 1
        answer(protected, "sum", task, sites)
    for name, sums in total(plain).items():
        torch.testing.assert_close(total(protected)[name], sums, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize(
    ("prior", "expected"),
    [
        ("equal", [0.25, 0.25, 0.25, 0.25]),
        ("observed", [20 / 38, 2 / 38, 5 / 38, 11 / 38]),
        ({"0": 7.0, "1": 1.0, "2": 1.0, "3": 1.0}, [0.7, 0.1, 0.1, 0.1]),
    ],
)
def test_the_prior_is_what_the_classifier_answers_on_average(prior: Any, expected: list[float]) -> None:
    plain = bench("streaming_ridge", prior=prior)
    stream = TaskStream(STREAM.tasks[:2])
    made = Bench(METHODS["streaming_ridge"](plain.method.params, stream), plain.model)
    for task in (0, 1):
        learn(made, task, [uneven(stream.classes(task))])
    images = uneven((0, 1, 2, 3))
    with torch.no_grad():
        answers = head_of(made)(made.inputs(made.stage("sum", 0), images))
    by_class = torch.stack([answers[images.labels == label].mean(dim=0) for label in head_of(made).rows])
    shares = torch.tensor(expected)
    # A least-squares answer has, over what it was solved for, the mean of its targets.
    torch.testing.assert_close(shares @ by_class, shares, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("prior", "message"),
    [
        ({"0": 1.0, "1": 1.0}, "does not name the class '2'"),
        ({**dict.fromkeys("01234567", 1.0), "8": 1.0}, "names an unknown class '8'"),
    ],
)
def test_shares_name_each_class_before_anything_is_learnt(prior: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        bench("streaming_ridge", prior=prior).method.stages(0)
