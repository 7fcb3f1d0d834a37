from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dynammo_core.aggregation.clipping import norm_clipping


def test_clipping_by_hand() -> None:
    # Lengths 5, 10, 1: the second is halved. By voices 1, 1, 2: (3 + 0 + 0) / 4 and (4 + 5 + 2 * 1) / 4.
    updates = torch.tensor([[3.0, 4], [0, 10], [0, 1]], dtype=torch.float64)
    weights = torch.tensor([1.0, 1, 2], dtype=torch.float64)
    torch.testing.assert_close(norm_clipping(updates, weights, 1), torch.tensor([0.75, 2.75], dtype=torch.float64))


def test_of_two_lengths_the_lower_is_the_bound() -> None:
    updates = torch.tensor([[2.0], [1e30]], dtype=torch.float64)
    assert norm_clipping(updates, torch.ones(2, dtype=torch.float64), 1).item() == pytest.approx(2.0)


def test_updates_of_no_length_stay() -> None:
    updates = torch.zeros(3, 2, dtype=torch.float64)
    assert torch.equal(norm_clipping(updates, torch.ones(3, dtype=torch.float64), 1), updates[0])


@given(seed=st.integers(0, 2**16), far=st.floats(1, 1e30))
def test_nobody_makes_the_result_longer_than_the_median_length(seed: int, far: float) -> None:
    updates = torch.randn(5, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    bound = updates.norm(dim=1).sort().values
    updates[2] *= far
    result = norm_clipping(updates, torch.ones(5, dtype=torch.float64), 1)
    assert result.norm() <= bound[3] * (1 + 1e-9)  # the lie moves the median by one rank at most
