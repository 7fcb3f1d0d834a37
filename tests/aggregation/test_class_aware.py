from __future__ import annotations

from collections.abc import Sequence
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dynammo_core.aggregation.class_aware import Update, class_aware_mean, row_weights, sample_weighted_mean
from dynammo_core.models.heads import OTHERS

ROWS = (2, 0, OTHERS)
HEAD = {"head.weight": ROWS, "head.bias": ROWS}
CLASSES = 4

counts_of_a_site = st.lists(st.integers(0, 30), min_size=CLASSES, max_size=CLASSES).filter(any)
counts_of_sites = st.lists(counts_of_a_site, min_size=1, max_size=5)


def tensors(seed: int) -> dict[str, Tensor]:
    """One of every kind of tensor that travels."""
    rng = np.random.default_rng(seed)
    shapes = {"head.weight": (3, 2), "head.bias": (3,), "conv.weight": (2, 1, 3, 3), "alpha": (), "head.gram": (2, 2)}
    made = {name: torch.tensor(rng.normal(size=shape), dtype=torch.float32) for name, shape in shapes.items()}
    made["bn.running_mean"] = torch.tensor(rng.normal(size=2), dtype=torch.float32)
    made["bn.running_var"] = torch.tensor(rng.uniform(0.1, 2, 2), dtype=torch.float32)
    return made


def updates_of(counts: Sequence[Sequence[int]], seed: int = 0) -> list[Update]:
    return [Update(tensors(seed + 1 + site), own) for site, own in enumerate(counts)]


def merge(updates: Sequence[Update], current: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    return class_aware_mean(updates, HEAD, current or tensors(99), {"head.gram"})


def total(updates: Sequence[Update]) -> list[int]:
    return [sum(column) for column in zip(*(update.class_counts for update in updates), strict=True)]


def held(counts: Sequence[int]) -> Tensor:
    return torch.tensor(row_weights(ROWS, counts)) > 0


def test_row_weights_by_hand() -> None:
    # Rows of the classes 2 and 0, and all others: 3 + 9 images of the classes 1 and 3.
    assert row_weights(ROWS, [5, 3, 0, 9]) == [0, 5, 12]
    assert row_weights((1, 3), [5, 3, 0, 9]) == [3, 9]


def test_tensors_of_no_head_are_weighted_by_samples() -> None:
    # Sites of 6 and 2 samples: (6 * 1 + 2 * 9) / 8 = 3.
    sites = [Update({"conv": torch.tensor([1.0])}, [6, 0]), Update({"conv": torch.tensor([9.0])}, [1, 1])]
    assert class_aware_mean(sites, {}, {}) == {"conv": torch.tensor([3.0])}


def test_rows_are_weighted_by_samples_of_their_class() -> None:
    # Counts a class: site a 4, 0, 1, 3 and site b 1, 2, 3, 0; rows of the classes 2 and 0, and others (1 and 3).
    # Row 2: (1 * 1 + 3 * 5) / 4 = 4. Row 0: (4 * 2 + 1 * 7) / 5 = 3. Others: (3 * 3 + 2 * 8) / 5 = 5.
    # The mean by samples, 8 and 6, would say (8 * 1 + 6 * 5) / 14 = 2.71 for the first.
    a, b = torch.tensor([1.0, 2, 3]), torch.tensor([5.0, 7, 8])
    sites = [Update({"head.bias": a}, [4, 0, 1, 3]), Update({"head.bias": b}, [1, 2, 3, 0])]
    torch.testing.assert_close(merge(sites)["head.bias"], torch.tensor([4.0, 3, 5]))
    by_samples = sample_weighted_mean(sites, HEAD, {})["head.bias"]
    torch.testing.assert_close(by_samples, (8 * a + 6 * b) / 14)


def test_a_site_that_never_saw_a_class_does_not_pull_its_row() -> None:
    knows, pulls = Update(tensors(1), [5, 5, 5, 5]), Update(tensors(2), [0, 900, 0, 100])
    merged = merge([knows, pulls])
    for name in HEAD:
        assert torch.equal(merged[name][:2], knows.weights[name][:2])
        # Others: 10 of its samples against 1000.
        expected = (10 * knows.weights[name][2] + 1000 * pulls.weights[name][2]) / 1010
        torch.testing.assert_close(merged[name][2], expected)


def test_a_row_whose_class_nobody_holds_stays_the_servers() -> None:
    current = tensors(7)
    merged = merge([Update(tensors(1), [3, 0, 0, 0]), Update(tensors(2), [8, 0, 0, 0])], current)
    for name in HEAD:  # class 2 and others: nobody; class 0: both
        assert torch.equal(merged[name][[0, 2]], current[name][[0, 2]])
        assert not torch.isclose(merged[name][1], current[name][1]).any()


def test_sums_are_added_not_averaged() -> None:
    sites = updates_of([[1, 0, 0, 0], [100, 0, 0, 0], [7, 7, 7, 7]])
    expected = sum(update.weights["head.gram"].double() for update in sites)
    assert torch.equal(merge(sites)["head.gram"], expected.float())


def test_batch_norm_statistics_are_pooled_by_samples() -> None:
    # Sites of 3 and 1 samples, means 0 and 2, variances 1: 2 - 1/4, as derived in test_batch_norm.py.
    sites = [
        Update({"bn.running_mean": torch.tensor([mean]), "bn.running_var": torch.ones(1)}, [samples])
        for mean, samples in ((0.0, 3), (2.0, 1))
    ]
    merged = class_aware_mean(sites, {}, {})
    assert merged == {"bn.running_mean": torch.tensor([0.5]), "bn.running_var": torch.tensor([1.75])}


@given(counts=counts_of_a_site, seed=st.integers(0, 99))
def test_one_site_is_the_identity(counts: list[int], seed: int) -> None:
    own, current = tensors(seed), tensors(99)
    for aggregate in (class_aware_mean, sample_weighted_mean):  # rows of classes that it does not hold, too
        merged = aggregate([Update(own, counts)], HEAD, current, {"head.gram"})
        assert set(merged) == set(own)
        assert all(torch.equal(merged[name], tensor) for name, tensor in own.items())


@given(counts=counts_of_sites, seed=st.integers(0, 99))
def test_means_are_convex(counts: list[list[int]], seed: int) -> None:
    sites = updates_of(counts, seed)
    merged = merge(sites)
    rows = held(total(sites))
    for name in ("head.weight", "head.bias", "conv.weight", "alpha", "bn.running_mean"):
        stacked = torch.stack([update.weights[name] for update in sites])
        result = merged[name]
        if name in HEAD:
            stacked, result = stacked[:, rows], result[rows]
        assert (result >= stacked.amin(0) - 1e-6).all()
        assert (result <= stacked.amax(0) + 1e-6).all()


@given(counts=counts_of_sites, order=st.randoms(use_true_random=False))
def test_the_order_of_sites_does_not_matter(counts: list[list[int]], order: Random) -> None:
    sites = updates_of(counts)
    shuffled = order.sample(sites, len(sites))
    torch.testing.assert_close(merge(shuffled), merge(sites), rtol=1e-6, atol=1e-6)


@given(counts=counts_of_sites.filter(lambda c: len(c) > 1), at=st.integers(1, 4))
def test_merging_in_two_levels_is_merging_at_once(counts: list[list[int]], at: int) -> None:
    sites = updates_of(counts)
    groups = [group for group in (sites[:at], sites[at:]) if group]
    regions = [Update(merge(group), total(group)) for group in groups]
    torch.testing.assert_close(merge(regions), merge(sites), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_types_stay(dtype: torch.dtype) -> None:
    sites = [Update({n: t.to(dtype) for n, t in tensors(i).items()}, [1, 2, 3, i]) for i in range(3)]
    merged = merge(sites, {name: tensor.to(dtype) for name, tensor in tensors(99).items()})
    assert {tensor.dtype for tensor in merged.values()} == {dtype}
