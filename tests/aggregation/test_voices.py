from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dynammo_core.aggregation.voices import mixed, squared_distances, voices


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_voices_by_hand() -> None:
    # f = 1, cap c: min(1, c) + min(7, c) + 2 min(.., c) >= 3 c. At c = 8 that is 1 + 7 + 8 + 8 = 24 = 3 * 8.
    assert torch.equal(voices(vector(33, 1, 101, 7), 1), vector(8, 1, 8, 7))
    # A claim of a billion samples: 1 + 33 + 34 + 34 = 102 = 3 * 34.
    assert torch.equal(voices(vector(1e9, 1, 33, 101), 1), vector(34, 1, 33, 34))
    # Sites of like sizes are not capped: 204 + 286 + 299 + 312 + 337 = 1438 >= 3 * 337.
    like = vector(337, 299, 204, 312, 286)
    assert torch.equal(voices(like, 1), like)


def test_without_an_honest_majority_each_site_has_one_voice() -> None:
    assert torch.equal(voices(vector(5, 90), 1), vector(1, 1))
    assert torch.equal(voices(vector(5, 90, 3, 8), 2), vector(1, 1, 1, 1))


def test_nobody_lies_and_nobody_is_capped() -> None:
    assert torch.equal(voices(vector(5, 90), 0), vector(5, 90))


@given(samples=st.lists(st.integers(1, 10**9), min_size=1, max_size=12), liars=st.integers(0, 4))
def test_no_cap_could_be_higher(samples: list[int], liars: int) -> None:
    claimed, fewest = vector(*samples), 2 * liars + 1
    heard = voices(claimed, liars)
    if len(samples) < fewest:
        return
    assert (heard <= claimed).all()
    loudest = float(heard.max())
    assert float(heard.sum()) >= fewest * loudest * (1 - 1e-9)
    if loudest < max(samples):  # somebody is capped: the least more, and f liars could be half
        more = loudest * (1 + 1e-6)
        assert float(claimed.clamp_max(more).sum()) < fewest * more


def test_mixing_by_hand() -> None:
    # f = 1 of three: each with its nearest. 0 and 2: (1 * 0 + 3 * 2) / 4 = 1.5; 10 and 2: (1 * 10 + 3 * 2) / 4 = 4.
    assert torch.equal(mixed(vector(0, 2, 10)[:, None], vector(1, 3, 1), 1), vector(1.5, 1.5, 4)[:, None])


def test_mixing_leaves_the_distant_out_of_the_others() -> None:
    near = torch.randn(6, 9, generator=torch.Generator().manual_seed(0)).double()
    updates = torch.cat([near, torch.full((2, 9), 1e6, dtype=torch.float64)])
    result = mixed(updates, torch.ones(8, dtype=torch.float64), 2)
    torch.testing.assert_close(result[:6], near.mean(dim=0).expand(6, -1))


def test_as_few_sites_as_may_lie_are_not_mixed() -> None:
    updates = torch.tensor([[1.0, 2], [5, 5]], dtype=torch.float64)
    assert torch.equal(mixed(updates, vector(4, 1), 2), updates)


def test_distances_by_hand() -> None:
    points = torch.tensor([[0.0, 0], [3, 4], [3, 0]], dtype=torch.float64)
    expected = torch.tensor([[0.0, 25, 9], [25, 0, 16], [9, 16, 0]], dtype=torch.float64)
    torch.testing.assert_close(squared_distances(points), expected)
