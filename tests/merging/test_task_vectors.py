"""Operators on task vectors, by hand and by what must hold."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dynammo_core.merging import MERGE_OPERATORS
from dynammo_core.merging.averages import merge_mean
from dynammo_core.merging.task_sets import TaskSets
from dynammo_core.merging.task_vectors import (
    TASK_VECTORS,
    breadcrumbs,
    dare,
    magmax,
    merge_task_vectors,
    task_arithmetic,
    ties,
)
from dynammo_core.support.seeding import seeded_generator, seeded_initialisation

BASE = torch.tensor([[1.0, 1.0, 1.0, 1.0]])


def vectors(count: int = 3, entries: int = 400) -> Tensor:
    return torch.randn(count, 1, entries, dtype=torch.float64, generator=seeded_generator("vectors"))


def test_task_vectors_start_from_the_initial_set_and_are_scaled() -> None:
    # Vectors (1, 0, 0, 0) and (3, 2, 0, 0): mean (2, 1, 0, 0), twice that on the base. The scalar is the mean.
    sets = [
        {"w": BASE + torch.tensor([[1.0, 0, 0, 0]]), "alpha": torch.tensor(1.0)},
        {"w": BASE + torch.tensor([[3.0, 2, 0, 0]]), "alpha": torch.tensor(2.0)},
    ]
    given_ = TaskSets(sets, initial={"w": BASE, "alpha": torch.tensor(0.0)}, scale=2.0)
    result = merge_task_vectors(task_arithmetic, given_)
    assert result["w"].tolist() == [[5.0, 3.0, 1.0, 1.0]]
    assert result["alpha"] == 1.5


def test_task_arithmetic_of_scale_one_is_the_mean_and_of_scale_t_the_papers_sum() -> None:
    sets = [{"w": BASE + vector.float()} for vector in vectors(3, 4)]
    merged = partial(merge_task_vectors, task_arithmetic)
    torch.testing.assert_close(merged(TaskSets(sets, {"w": BASE}))["w"], merge_mean(TaskSets(sets))["w"])
    total = BASE + vectors(3, 4).sum(dim=0).float()
    torch.testing.assert_close(merged(TaskSets(sets, {"w": BASE}, scale=3.0))["w"], total)


def test_ties_by_hand() -> None:
    # Half of the entries stay, "." for the others: (4, -3, ., .), (2, ., -2, .), (., 5, ., -1). The sums 6, 2, -2, -1
    # give the signs +, +, -, -. Those that agree: 4 and 2; 5; -2; -1.
    given_ = torch.tensor([[[4.0, -3.0, 1.0, 0.5]], [[2.0, 0.1, -2.0, 0.0]], [[0.2, 5.0, 0.3, -1.0]]])
    assert ties(given_, 0.5).tolist() == [[3.0, 5.0, -2.0, -1.0]]


def test_ties_trims_all_tensors_together_and_others_each_by_itself() -> None:
    # One set: of 4 entries half stay, which are the two large ones of the first tensor, and none of the second.
    given_ = TaskSets([{"a": 1 + torch.tensor([[5.0, 4.0]]), "b": torch.tensor([[1.0, 2.0]])}], density=0.5)
    initial = {"a": torch.ones(1, 2), "b": torch.zeros(1, 2)}
    together = merge_task_vectors(ties, replace(given_, initial=initial), whole=True)
    assert (together["a"].tolist(), together["b"].tolist()) == ([[6.0, 5.0]], [[0.0, 0.0]])
    apart = merge_task_vectors(ties, replace(given_, initial=initial))
    assert (apart["a"].tolist(), apart["b"].tolist()) == ([[6.0, 1.0]], [[0.0, 2.0]])
    assert [MERGE_OPERATORS[name].keywords["whole"] for name in ("ties", "magmax")] == [True, False]  # type: ignore[attr-defined]


def test_magmax_by_hand() -> None:
    given_ = torch.tensor([[[4.0, -3.0]], [[2.0, 0.1]], [[-5.0, 2.0]]])
    assert magmax(given_, 0.1).tolist() == [[-5.0, -3.0]]


def test_breadcrumbs_leave_out_the_largest_and_the_small() -> None:
    # Of the entries 1..200, 1 % outliers are 200 and 199; a tenth is kept: 179..198.
    given_ = torch.arange(1.0, 201.0).view(1, 1, 200)
    assert breadcrumbs(given_, 0.1).nonzero()[:, 1].tolist() == list(range(178, 198))


def test_dare_is_the_mean_on_average() -> None:
    # Each entry is drop or x / p: variance x^2 (1 - p) / p, so over 4,000 draws the mean of ones lies within
    # 4 sqrt(0.75 / 0.25 / 4000) = 0.11 of 1.
    with seeded_initialisation("dare"):
        drawn = dare(torch.ones(1, 4000), 0.25)
    assert set(drawn.tolist()) == {0.0, 4.0}
    assert drawn.mean().item() == pytest.approx(1, abs=0.11)


@pytest.mark.parametrize("combine", [ties, dare, breadcrumbs])
@given(density=st.floats(0.05, 0.9))
def test_as_much_is_kept_as_is_asked_for(combine: object, density: float) -> None:
    # Of one vector, so that what is kept is what is not zero. DARE draws: 400 entries, four standard deviations.
    with seeded_initialisation("density"):
        kept = int((TASK_VECTORS[combine.__name__](vectors(1), density) != 0).sum())  # type: ignore[attr-defined]
    slack = 4 * (400 * density * (1 - density)) ** 0.5 if combine is dare else 2
    assert abs(kept - 400 * density) <= slack


@pytest.mark.parametrize("combine", TASK_VECTORS.values(), ids=list(TASK_VECTORS))
@given(factor=st.floats(0.01, 100))
def test_longer_vectors_give_a_longer_one(combine: object, factor: float) -> None:
    with seeded_initialisation("scale"):
        once = combine(vectors(), 0.3)  # type: ignore[operator]
    with seeded_initialisation("scale"):
        scaled = combine(factor * vectors(), 0.3)  # type: ignore[operator]
    torch.testing.assert_close(scaled, factor * once, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("combine", TASK_VECTORS.values(), ids=list(TASK_VECTORS))
def test_no_entry_exceeds_the_largest_that_a_task_learnt(combine: object) -> None:
    if combine is dare:  # which scales up what stays
        return
    merged = combine(vectors(), 0.3)  # type: ignore[operator]
    assert (merged.abs() <= vectors().abs().amax(dim=0) + 1e-12).all()
