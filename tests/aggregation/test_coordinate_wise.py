from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dynammo_core.aggregation.blocks import Rule
from dynammo_core.aggregation.coordinate_wise import median, trimmed_mean
from dynammo_core.aggregation.voices import voices

numbers = st.floats(-1e6, 1e6)
both = pytest.mark.parametrize("rule", [median, trimmed_mean])


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def merged(rule: Rule, values: Tensor, weights: Tensor, liars: int = 1) -> float:
    return float(rule(values[:, None], weights, liars))


@pytest.mark.parametrize(
    ("values", "weights", "expected"),
    [
        ((100, 1, 5), (1, 1, 1), 5),
        ((3, 100, 1, 2), (1, 1, 1, 1), 2.5),  # an even number: between 2 and 3
        ((1, 2, 9), (1, 1, 3), 9),  # 9 alone is more than half of 5 voices
        ((1, 2, 9), (1, 2, 3), 5.5),  # 1 and 2 are half of 6 voices: between 2 and 9
        ((7,), (4,), 7),
    ],
)
def test_median_by_hand(values: tuple[float, ...], weights: tuple[float, ...], expected: float) -> None:
    assert merged(median, vector(*values), vector(*weights)) == expected


@pytest.mark.parametrize(
    ("values", "weights", "expected"),
    [
        ((1000, 1, 2, 6, -50), (1, 1, 1, 1, 1), 3),  # (1 + 2 + 6) / 3
        # 9 voices, 2 of them left out at either end: 2 voices say 2, 2 say 3, 1 of two says 4. (4 + 6 + 4) / 5
        ((1, 2, 3, 4, 5), (2, 2, 2, 2, 1), 2.8),
        ((0, 4, 8), (3, 4, 5), 4),  # 12 voices, 5 left out: from the 5th to the 7th all say 4
        ((4, 10), (1, 1), 7),  # nobody would be left: the median
    ],
)
def test_trimmed_mean_by_hand(values: tuple[float, ...], weights: tuple[float, ...], expected: float) -> None:
    assert merged(trimmed_mean, vector(*values), vector(*weights)) == pytest.approx(expected)


@given(values=st.lists(numbers, min_size=1, max_size=9))
def test_equal_voices_make_the_median_that_numpy_knows(values: list[float]) -> None:
    assert merged(median, vector(*values), vector(*[3] * len(values))) == pytest.approx(np.median(values))


@given(values=st.lists(numbers, min_size=1, max_size=9), weights=st.lists(st.integers(1, 50), min_size=9, max_size=9))
def test_without_liars_nothing_is_trimmed(values: list[float], weights: list[int]) -> None:
    expected = np.average(values, weights=weights[: len(values)])
    actual = merged(trimmed_mean, vector(*values), vector(*weights[: len(values)]), liars=0)
    assert actual == pytest.approx(expected, rel=1e-9, abs=1e-6)


@both
def test_numbers_are_merged_one_by_one(rule: Rule) -> None:
    values = torch.tensor([[1.0, 30], [2, 10], [3, 20]], dtype=torch.float64)
    assert torch.equal(rule(values, vector(1, 1, 1), 1), vector(2, 20))


@both
@given(data=st.data(), liars=st.integers(0, 3))
def test_liars_move_nothing_out_of_the_range_of_the_honest(rule: Rule, data: st.DataObject, liars: int) -> None:
    """Whatever f of 2 f + 1 sites or more say, and however many samples they claim."""
    samples = st.integers(1, 10**6)
    honest = data.draw(st.lists(st.tuples(numbers, samples), min_size=liars + 1, max_size=8))
    lies = data.draw(st.lists(st.tuples(st.floats(-1e30, 1e30), samples), min_size=liars, max_size=liars))
    values, claims = zip(*data.draw(st.permutations([*honest, *lies])), strict=True)
    result = merged(rule, vector(*values), voices(vector(*claims), liars), liars)
    said = [value for value, _ in honest]
    slack = 1e-9 * (1 + max(map(abs, said)))
    assert min(said) - slack <= result <= max(said) + slack
