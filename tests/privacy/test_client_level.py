"""The private mean over sites: no site moves it further than the bound, and the noise is as large as it says."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dynammo_core.privacy.client_level import noised_mean, shortened_update
from dynammo_core.privacy.noise import SeededNoise

CURRENT = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor(5.0)}


def moved(by: tuple[float, float, float]) -> dict[str, Tensor]:
    return {"a": CURRENT["a"] + torch.tensor(by[:2]), "b": CURRENT["b"] + by[2]}


def mean(updates: list[dict[str, Tensor]], noise: float = 0.0, clip: float = 3.0) -> dict[str, Tensor]:
    source = SeededNoise("client")
    return noised_mean(updates, CURRENT, names=list(CURRENT), sites=4, clip=clip, noise_multiplier=noise, noise=source)


def test_updates_are_shortened_and_averaged_over_all_sites() -> None:
    """(2, 4, 4) has the length 6 and becomes (1, 2, 2); (0, 0, 3) stays; of four sites two answered."""
    found = mean([moved((2.0, 4.0, 4.0)), moved((0.0, 0.0, 3.0))])
    assert found["a"].tolist() == pytest.approx([1 + 1 / 4, 2 + 2 / 4])
    assert float(found["b"]) == pytest.approx(5 + (2 + 3) / 4)


def test_a_site_more_moves_the_mean_by_its_share_of_the_bound_at_most() -> None:
    few = [moved((0.1, 0.2, 0.3))]
    for length in (1e-3, 3.0, 1e30):
        one, other = mean(few), mean([*few, moved((length, 0.0, -length))])
        change = math.sqrt(sum(float((one[name] - other[name]).square().sum()) for name in one))
        assert change <= 3.0 / 4 * (1 + 1e-6)


def test_noise_is_multiplier_times_bound_over_sites() -> None:
    """2 * 3 / 4 = 1.5; of N = 20,000 numbers the sample deviation is within 6 / sqrt(2 N) = 3 %."""
    current = {"a": torch.zeros(20_000)}
    found = noised_mean(
        [current], current, names=["a"], sites=4, clip=3.0, noise_multiplier=2.0, noise=SeededNoise("large")
    )
    assert float(found["a"].std()) == pytest.approx(1.5, rel=0.03)


def test_a_site_shortens_its_own_update() -> None:
    short = shortened_update(moved((2.0, 4.0, 4.0)), CURRENT, clip=3.0)
    assert short["a"].tolist() == pytest.approx([2.0, 4.0])
    assert float(short["b"]) == pytest.approx(7.0)
    same = shortened_update(moved((0.5, 0.0, 0.0)), CURRENT, clip=3.0)
    assert same["a"].tolist() == [1.5, 2.0]
    still = shortened_update(dict(CURRENT), CURRENT, clip=3.0)
    assert torch.equal(still["a"], CURRENT["a"])
