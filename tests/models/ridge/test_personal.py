"""A site's own sums beside the common ones: the ends of beta are what they claim, and its own images decide."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from dynammo_core.models.ridge import personal
from dynammo_core.models.ridge.head import RidgeHead
from dynammo_core.models.ridge.personal import BETAS, OwnImages, best_beta, mixed, own_sums, without
from dynammo_core.scoring.own_choice import folds

ROWS, DIM, EACH = (3, 5), 4, 40


def site(seed: int, shift: float) -> OwnImages:
    """Images of two classes that lie apart along the first feature, about a middle that a site's scanner shifts."""
    noise = torch.randn(2 * EACH, DIM, generator=torch.Generator().manual_seed(seed))
    sides = torch.tensor([-1.0, 1.0]).repeat_interleave(EACH)
    noise[:, 0] = 2 * sides + shift + 0.5 * noise[:, 0]
    labels, patients = torch.tensor(ROWS).repeat_interleave(EACH), [f"{seed}/{i // 2}" for i in range(2 * EACH)]
    return OwnImages(noise, labels, patients, torch.ones(2 * EACH, dtype=torch.bool))


def together(sites: list[OwnImages]) -> RidgeHead:
    head = RidgeHead(DIM, ROWS)
    head.sample_weight.fill_(2.0**-7)
    for images in sites:
        head.add(images.features, images.labels)
    return head


def solve(head: RidgeHead, beta: float) -> None:
    head.solve(0.01, torch.tensor([0.5, 0.5], dtype=torch.float64))


def same(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_own_sums_mix_from_the_common_classifier_to_the_one_of_a_federation_of_one() -> None:
    own_images = site(1, 0.0)
    common, own = together([own_images, site(2, 3.0)]), own_sums(own_images, ROWS)
    assert own.sample_weight.tolist() == [2.0**-5, 2.0**-5]  # of 40 images
    nothing, all_ = mixed(common, own, 0.0), mixed(common, own, math.inf)
    for name in ("gram", "products", "counts"):
        assert torch.equal(nothing.get_buffer(name), common.get_buffer(name))
        assert torch.equal(all_.get_buffer(name), own.get_buffer(name))
    halves = mixed(common, own, 1.0)
    assert float(halves.gram[-1]) == 2 * float(common.gram[-1])  # as much weight as all sites together
    same(halves.gram, common.gram + own.gram * float(common.gram[-1] / own.gram[-1]))


def test_subtracted_images_leave_sums_that_never_had_them() -> None:
    one, other = site(1, 0.0), site(2, 3.0)
    rest = without(together([one, other]), one)
    for name in ("gram", "products", "counts"):
        same(rest.get_buffer(name), together([other]).get_buffer(name))


def test_folds_split_no_patient_and_spread_each_class() -> None:
    images = site(1, 0.0)
    fold = folds(images.labels, images.patients).tolist()
    assert len(set(zip(images.patients, fold, strict=True))) == len(set(images.patients))
    for label in ROWS:
        assert {fold[i] for i in (images.labels == label).nonzero().flatten().tolist()} == set(range(5))


def test_a_site_like_the_others_takes_the_common_classifier_and_an_odd_one_its_own() -> None:
    others = [site(seed, 0.0) for seed in (2, 3, 4)]
    for shift, least, most in ((0.0, 0.0, 0.0), (4.0, 1.0, math.inf)):
        images = site(1, shift)
        common, own = together([images, *others]), own_sums(images, ROWS)
        assert least <= best_beta(common, own, images, solve, 8) <= most
    assert BETAS[0] == 0 and math.isinf(BETAS[-1])


def test_a_fold_leaves_the_common_sums_as_far_as_they_contain_it(monkeypatch: pytest.MonkeyPatch) -> None:
    images, seen = site(1, 0.0), list[RidgeHead]()
    images = images._replace(summed=torch.arange(2 * EACH) % 6 > 1)  # of two in three patients
    monkeypatch.setattr(personal, "mixed", lambda common, own, beta: (seen.append(common), mixed(common, own, beta))[1])
    best_beta(together([images.subset(images.summed), site(2, 0.0)]), own_sums(images, ROWS), images, solve, 8)
    for number, rest in enumerate(seen[:: len(BETAS)]):
        stays = images.subset(images.summed & (folds(images.labels, images.patients) != number))
        same(rest.gram, together([stays, site(2, 0.0)]).gram)


def test_chance_leaves_the_common_classifier_in_place() -> None:
    others = [site(seed, 0.0) for seed in (32, 33, 34)]
    alike = [site(seed, 0.0) for seed in range(20)]
    chosen = [best_beta(together([one, *others]), own_sums(one, ROWS), one, solve, 8) for one in alike]
    assert chosen.count(0.0) >= 18


def test_images_of_one_patient_count_once_in_the_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = list[Sequence[str]]()
    wanted = personal.gains
    monkeypatch.setattr(personal, "gains", lambda *given: (seen.append(given[-1]), wanted(*given))[1])
    images = site(1, 0.0)
    assert best_beta(together([images, site(2, 0.0)]), own_sums(images, ROWS), images, solve, 8) == 0
    assert all(patients == images.patients for patients in seen) and len(set(images.patients)) == EACH
