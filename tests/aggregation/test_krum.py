from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dynammo_core.aggregation.krum import krum, multi_krum, scores

# On a line, f = 1: the nearest 5 - 1 - 2 = 2 of the others count.
LINE = torch.tensor([[0.0], [1], [2.5], [4.5], [100]], dtype=torch.float64)


def ones(count: int) -> Tensor:
    return torch.ones(count, dtype=torch.float64)


def test_scores_by_hand() -> None:
    # 0: 1^2 + 2.5^2; 1: 1^2 + 1.5^2; 2.5: 1.5^2 + 2^2; 4.5: 2^2 + 3.5^2; 100: 95.5^2 + 97.5^2.
    expected = torch.tensor([7.25, 3.25, 6.25, 16.25, 18626.5], dtype=torch.float64)
    torch.testing.assert_close(scores(LINE, 1), expected)


def test_krum_is_the_update_with_the_lowest_score() -> None:
    assert torch.equal(krum(LINE, ones(5), 1), LINE[1])


def test_multi_krum_is_the_mean_by_voices_without_the_worst() -> None:
    # (1 * 0 + 2 * 1 + 2 * 2.5 + 1 * 4.5) / 6, whatever 100 claims.
    weights = torch.tensor([1.0, 2, 2, 1, 2], dtype=torch.float64)
    torch.testing.assert_close(multi_krum(LINE, weights, 1), torch.tensor([11.5 / 6], dtype=torch.float64))


def test_of_two_sites_the_shorter_update_wins_in_any_order() -> None:
    pair = torch.tensor([[30.0, 0], [0, 1]], dtype=torch.float64)
    for updates in (pair, pair.flip(0)):
        assert torch.equal(krum(updates, ones(2), 1), pair[1])


def test_one_site_has_its_way() -> None:
    for rule in (krum, multi_krum):
        assert torch.equal(rule(LINE[3:4], ones(1), 1), LINE[3])


@given(
    seed=st.integers(0, 2**16),
    liars=st.integers(1, 3),
    more=st.integers(3, 6),
    far=st.floats(1e4, 1e30),
    same=st.booleans(),
)
def test_liars_far_away_are_never_chosen(seed: int, liars: int, more: int, far: float, same: bool) -> None:
    """Among 2 f + 3 sites or more, even if all liars say the same: each has only f - 1 others near."""
    generator = torch.Generator().manual_seed(seed)
    honest = torch.randn(liars + more, 4, generator=generator, dtype=torch.float64)
    directions = torch.ones(liars, 4) if same else torch.randn(liars, 4, generator=generator).sign()
    updates = torch.cat([honest, far * directions.double()])
    chosen = krum(updates, ones(len(updates)), liars)
    assert (honest == chosen).all(dim=1).any()
    assert multi_krum(updates, ones(len(updates)), liars).abs().max() <= honest.abs().max()
