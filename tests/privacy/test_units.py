"""A patient is hidden as an image is: one more or less, with all images, changes no sum by more than noise hides."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from scipy.stats import norm
from small_runs import small_config
from torch import Tensor

from dynammo_core.data.samples import Samples, Split
from dynammo_core.data.sources import ArraySource
from dynammo_core.experiment import Experiment
from dynammo_core.memory.rehearsal import SIMULATED_DAY
from dynammo_core.memory.store import ReplayMemory
from dynammo_core.models.ridge.head import RidgeHead, unpack
from dynammo_core.privacy.accounting import Charge, compose, site_epsilon
from dynammo_core.privacy.plan import example_charges
from dynammo_core.privacy.rehearsal import hashed, hashed_by_patient, kept, remember_by_record
from dynammo_core.privacy.units import owners, require_patients, shares
from dynammo_core.support.errors import DataError

DELTA = 1e-5


def samples(patients: str, labels: list[int], mark: str = "") -> Samples:
    """Images without a look, one per letter, which names the patient."""
    images = torch.zeros(len(labels), 1, 2, 2, dtype=torch.uint8)
    records = tuple(f"{mark}{place}" for place in range(len(labels)))
    return Samples(images, torch.tensor(labels, dtype=torch.int64), records, tuple(patients))


def test_the_images_of_a_patient_weigh_one_together() -> None:
    held = samples("abacab", [0, 0, 1, 1, 1, 0])
    assert owners(held, "patient").tolist() == [0, 1, 0, 2, 0, 1]
    assert shares(owners(held, "patient")).tolist() == pytest.approx([1 / 3, 1 / 2, 1 / 3, 1, 1 / 3, 1 / 2])
    assert owners(held, "image").tolist() == list(range(6))
    assert shares(owners(held, "image")).tolist() == [1] * 6
    for unit in ("image", "patient"):
        assert shares(owners(Samples.empty(), unit)).tolist() == []  # type: ignore[arg-type]


@pytest.mark.parametrize("images", [1, 2, 5, 30])
@pytest.mark.parametrize("alike", [True, False], ids=["one picture", "many pictures"])
def test_a_patient_more_changes_the_sums_by_no_more_than_an_image(images: int, alike: bool) -> None:
    """The bounds of `RidgeHead.blur`: W B^2 for the triangle and W B for the rows, here with weights of 1 and B = 3."""
    bound, dim = 3.0, 6
    generator = torch.Generator().manual_seed(images)
    looks = torch.randn(1 if alike else images, dim, generator=generator).expand(images, -1)
    looks = looks * bound / looks.norm(dim=1, keepdim=True)
    labels = torch.zeros(images, dtype=torch.int64) if alike else torch.arange(images) % 3
    others, other_labels = torch.randn(9, dim, generator=generator), torch.arange(9) % 3

    def sums(owner: Tensor) -> RidgeHead:
        head = RidgeHead(dim, (0, 1, 2))
        features, every = torch.cat([others, looks]), torch.cat([other_labels, labels])
        head.add(features[: len(owner)], every[: len(owner)], shares(owner))
        return head

    without = sums(torch.arange(9))
    more = sums(torch.cat([torch.arange(9), torch.full((images,), 9)]))
    gram = unpack(more.gram - without.gram, dim + 1)[:-1, :-1]
    triangle = float(gram.triu().norm())
    rows = float((more.products - without.products)[:, :-1].norm())
    counts = float((more.counts - without.counts).norm())
    assert triangle <= bound**2 * (1 + 1e-6)
    assert rows <= bound * (1 + 1e-6)
    assert counts <= 1 + 1e-9
    if alike:  # and no less than an image does
        assert rows == pytest.approx(bound, rel=1e-6)


@pytest.mark.parametrize("lost", ["a", "d", "t"])
def test_a_patient_less_takes_no_others_exemplars_along(lost: str) -> None:
    """Twenty patients, each with one to four images of two classes; the memory is cut twice."""
    patients = "".join(letter * (place % 4 + 1) for place, letter in enumerate("abcdefghijklmnopqrst"))
    labels = [place % 2 for place in range(len(patients))]
    census, chance = {0: 10, 1: 10, 2: 12}, hashed_by_patient(4)

    def memory(held: Samples, more: Samples) -> set[str]:
        first = remember_by_record(
            ReplayMemory(-1, Samples.empty()),
            held,
            task=0,
            share=13,
            census=census,
            chance=chance,
            today=SIMULATED_DAY,
            class_names=(),
        )
        assert len(first.samples) > 15
        second = remember_by_record(
            first, more, task=1, share=5, census=census, chance=chance, today=SIMULATED_DAY, class_names=()
        )
        assert {*second.record_ids} - {*more.record_ids} <= {*first.record_ids}
        return {*second.record_ids}

    held, more = samples(patients, labels), samples(patients, [2] * len(labels), mark="late-")
    rest = [place for place, patient in enumerate(patients) if patient != lost]
    gone = {held.record_ids[place] for place, patient in enumerate(patients) if patient == lost}
    gone |= {f"late-{record}" for record in gone}
    assert memory(held, more) - gone == memory(held.subset(rest), more.subset(rest))


@pytest.mark.parametrize("share", [30, 100, 130, 250])
def test_every_patient_keeps_about_as_many_images(share: int) -> None:
    """Of 100 patients with three images each: share / 100 images of each, rounded up or down, as far as they go."""
    patients = tuple(f"patient-{place // 3}" for place in range(300))
    held = samples("", [0] * 300, "of-")
    held = Samples(held.images, held.labels, held.record_ids, patients)
    images = Counter(kept(held, share, {0: 100}, hashed_by_patient(3)).patient_ids)
    counts = [images[patient] for patient in sorted(set(patients))]
    assert {*counts} <= {share // 100, -(-share // 100)}
    assert abs(sum(counts) - share) < 6 * 5  # binomial, of a deviation of 5 at most
    by_image = kept(held, share, {0: 300}, hashed(3))
    assert len({*Counter(by_image.patient_ids).values()}) > 1  # images by themselves are spread as they come


def test_a_patient_is_charged_for_every_class() -> None:
    """The Gaussian mechanisms of two tasks are one of mu = (sum of 1 / sigma^2)^(1/2), whose delta is known exactly."""

    def exact(noises: list[float]) -> float:
        mu = math.sqrt(sum(1 / noise**2 for noise in noises))

        def delta(epsilon: float) -> float:
            upper, lower = mu / 2 - epsilon / mu, -mu / 2 - epsilon / mu
            return float(norm.cdf(upper) - math.exp(epsilon) * norm.cdf(lower)) - DELTA

        return float(brentq(delta, 1e-6, 100))

    sums = {"privacy.mechanism": "example", "privacy.noise_multiplier": 3.0, "privacy.count_noise": 5.0}
    experiment = Experiment(small_config("streaming_ridge", {**sums, "privacy.unit": "patient"}))
    charges = example_charges(experiment.method, experiment.steps, 3.0)
    assert [(charge.stage, charge.unit) for charge in charges] == [("census", "patient")] * 2 + [("sum", "patient")] * 2
    assert site_epsilon(charges, DELTA) == pytest.approx(exact([5.0, 5.0, 3.0, 3.0]), rel=2e-3)
    by_image = Experiment(small_config("streaming_ridge", sums))
    charges = example_charges(by_image.method, by_image.steps, 3.0)
    assert site_epsilon(charges, DELTA) == pytest.approx(exact([5.0, 3.0]), rel=2e-3)  # an image has one class


def test_sampled_steps_add_up_over_the_classes_too() -> None:
    charges = [Charge(task, "adapt", 0, 1.2, 0.25, 8, (2 * task, 2 * task + 1), "patient") for task in range(3)]
    assert site_epsilon(charges, DELTA) == compose(charges, DELTA) > 1.3 * compose(charges[:1], DELTA)


def test_the_least_noise_keeps_to_the_budget_of_a_patient() -> None:
    private = {"privacy.mechanism": "example", "privacy.epsilon": 4.0, "method.norm": "group"}
    by_image, by_patient = (
        Experiment(small_config("dynammo", {**private, "privacy.unit": unit})) for unit in ("image", "patient")
    )
    noise = by_patient.noise_multiplier
    assert noise > by_image.noise_multiplier
    assert 3.9 < compose(example_charges(by_patient.method, by_patient.steps, noise), DELTA) <= 4.0


def test_patients_are_not_protected_where_nobody_knows_them() -> None:
    images = ArraySource(np.zeros((2, 8, 8), dtype=np.uint8))
    unnamed = Split(images, np.zeros(2, dtype=np.int64), ("1", "2"))
    named = Split(images, np.zeros(2, dtype=np.int64), ("1", "2"), patients=("ann", "ann"))
    with pytest.raises(DataError, match=r"does not say which patient .* or set privacy\.unit: image"):
        require_patients(unnamed, "patient")
    require_patients(unnamed, "image")
    require_patients(named, "patient")
    with pytest.raises(DataError, match="does not say which patient"):
        Experiment(small_config("streaming_ridge", {"privacy.mechanism": "example", "privacy.unit": "patient"})).check()
