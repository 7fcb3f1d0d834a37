"""Sums of samples pass, whatever the samples; what no samples give does not."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dynammo_core.models.ridge.gram import pack, unpack
from dynammo_core.models.ridge.head import RidgeHead

ROWS, DIM, CLASSES = (4, 7, 2), 12, 9


def sums_of(seed: int, samples: int, weights: list[float], units: float, dead: int) -> tuple[RidgeHead, list[int]]:
    """A head that has taken in so many samples in batches, some features of them 0, of classes in any numbers."""
    generator = torch.Generator().manual_seed(seed)
    head = RidgeHead(DIM, ROWS)
    head.sample_weight.copy_(torch.tensor(weights))
    labels = torch.tensor(ROWS)[torch.randint(len(ROWS), (samples,), generator=generator)]
    labels = labels[head.sample_weight[head.targets(labels)] > 0]
    features = torch.randn(len(labels), DIM, generator=generator) * torch.logspace(-units, units, DIM) + 3
    features[:, :dead] = 0
    for one, other in zip(features.split(7), labels.split(7), strict=True):
        head.add(one, other)
    return head, [int((labels == label).sum()) for label in range(CLASSES)]


def told_by(head: RidgeHead) -> dict[str, Tensor]:
    return {name: head.get_buffer(name).clone() for name in head.summed_tensors}


several = st.integers(0, 10**6)
weights_of_rows = st.lists(st.sampled_from([0.0, 0.01, 1.0, 3.7, 200.0]), min_size=3, max_size=3).filter(any)


@given(seed=several, samples=st.integers(1, 60), weights=weights_of_rows, units=st.floats(0, 4), dead=st.integers(0, 3))
def test_sums_of_any_samples_pass(seed: int, samples: int, weights: list[float], units: float, dead: int) -> None:
    """A single sample, features all 0, units that are millions apart, classes that weigh nothing."""
    head, counts = sums_of(seed, samples, weights, units, dead)
    assert head.obstacle(told_by(head), counts) == ""


@given(seed=several, samples=st.integers(2, 40), sites=st.integers(2, 20))
def test_sums_in_fixed_point_pass_as_they_come_out_of_masks(seed: int, samples: int, sites: int) -> None:
    heads = [sums_of(seed + site, samples, [1.0, 1.0, 1.0], 2, 2) for site in range(sites)]
    total = {
        name: sum((told_by(head)[name] * 2**30).round() for head, _ in heads) / 2**30  # type: ignore[misc]
        for name in RidgeHead.summed_tensors
    }
    counts = [sum(of_class) for of_class in zip(*(own for _, own in heads), strict=True)]
    assert heads[0][0].obstacle(total, counts, rounding=sites / 2**30) == ""  # type: ignore[arg-type]


@given(seed=several, samples=st.integers(2, 40), data=st.data())
def test_what_is_left_when_samples_are_taken_out_again_passes(seed: int, samples: int, data: st.DataObject) -> None:
    """Their features computed again, in float32 and another batch, off by some 1e-6; and more features than samples."""
    gone = data.draw(st.integers(1, samples))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.tensor(ROWS)[torch.randint(len(ROWS), (samples,), generator=generator)]
    features = torch.randn(samples, DIM, generator=generator) + 3
    again = features[:gone] * (1 + 1e-6 * torch.randn(gone, DIM, generator=generator))
    head, taken = RidgeHead(DIM, ROWS), RidgeHead(DIM, ROWS)
    head.add(features, labels)
    taken.add(again, labels[:gone])
    for name, tensor in told_by(taken).items():
        head.get_buffer(name).sub_(tensor)
    head.clear_absent()
    assert head.obstacle_to_rest(told_by(taken)) == ""


def test_more_taken_out_than_was_in_is_noticed() -> None:
    head, _ = sums_of(1, 30, [1.0, 1.0, 1.0], 1, 0)
    taken, _ = sums_of(2, 9, [1.0, 1.0, 1.0], 1, 0)
    part = told_by(taken)
    for name, tensor in part.items():
        head.get_buffer(name).sub_(tensor)
    assert "'gram' is not positive semidefinite" in head.obstacle_to_rest(part)  # samples that were never in
    head, _ = sums_of(1, 3, [1.0, 1.0, 1.0], 1, 0)
    head.counts -= taken.counts
    assert "negative number of samples" in head.obstacle_to_rest(part)


def test_each_relation_by_itself() -> None:
    head, counts = sums_of(3, 30, [1.0, 2.0, 0.0], 1, 0)
    true = told_by(head)
    assert counts[2] == 0  # its class weighs nothing

    def refused(**changed: Tensor) -> str:
        return head.obstacle({**true, **changed}, counts)

    assert "'counts' differ from" in refused(counts=true["counts"] * 2)
    for name in ("gram", "products"):
        assert "number of samples in the sums" in refused(**{name: 1.001 * true[name]})
    products = true["products"].clone()
    products[0, 3] += 1e-3 * products[0, 3].abs()
    assert "do not add up" in refused(products=products)
    products = true["products"].clone()
    products[2, 3], products[0, 3] = products[0, 3] / 2, products[0, 3] / 2
    assert "classes without samples" in refused(products=products)
    matrix = unpack(true["gram"], DIM + 1)
    for change in (-1e-3, -1.0, -1e3):  # of a feature's own sum of squares: less than its classes' means demand
        shrunk = matrix.clone()
        shrunk[3, 3] = products[:2, 3].square().div(products[:2, -1]).sum() * (1 + change)
        assert "not positive semidefinite" in refused(gram=pack(shrunk))
    huge = matrix.clone()
    huge[3, 3] = 1e300
    assert "too large for samples" in refused(gram=pack(huge))
