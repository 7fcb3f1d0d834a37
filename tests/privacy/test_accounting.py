"""What charges compose to, against values worked out by hand."""

from __future__ import annotations

import math
from statistics import NormalDist

import pytest

from dynammo_core.privacy.accounting import Charge, by_class, compose, least_noise, site_epsilon
from dynammo_core.support.errors import ConfigError

DELTA = 1e-5
PHI = NormalDist().cdf


def charge(noise: float, *, rate: float = 1.0, steps: int = 1, classes: tuple[int, ...] = (0,)) -> Charge:
    return Charge(0, "adapt", 0, noise, rate, steps, classes)


def gaussian_epsilon(mu: float, delta: float) -> float:
    """The epsilon at which delta = Phi(-e/mu + mu/2) - exp(e) Phi(-e/mu - mu/2) (Balle and Wang, arXiv 1805.06530,
    theorem 8), by bisection: the exact cost of a Gaussian mechanism with sensitivity / deviation = mu."""
    low, high = 0.0, 100.0
    for _ in range(100):
        e = (low + high) / 2
        low, high = (e, high) if PHI(-e / mu + mu / 2) - math.exp(e) * PHI(-e / mu - mu / 2) > delta else (low, e)
    return high


@pytest.mark.parametrize("noises", [(1.0,), (4.0, 4.0, 4.0), (0.8, 2.0, 5.0)], ids=["one", "three alike", "three"])
def test_gaussians_compose_as_by_hand(noises: tuple[float, ...]) -> None:
    """Gaussians of multipliers s_i are one with mu = sqrt(sum of 1 / s_i^2); the grid rounds up, by little."""
    exact = gaussian_epsilon(math.sqrt(sum(noise**-2 for noise in noises)), DELTA)
    found = compose([charge(noise) for noise in noises], DELTA)
    assert exact <= found <= exact + 1e-2
    together = compose([charge(noises[0], steps=len(noises))], DELTA)
    assert (together == pytest.approx(found, abs=1e-9)) is (len(set(noises)) == 1)


def test_one_sampled_step_costs_what_amplification_says() -> None:
    """At rate q, (e, delta) becomes (log(1 + q (exp(e) - 1)), q delta), and no less (Balle, Barthe and Gaboardi, arXiv
    1807.01647, theorem 8)."""
    rate = 0.2
    whole = gaussian_epsilon(1.0, DELTA / rate)
    assert compose([charge(1.0, rate=rate)], DELTA) == pytest.approx(math.log1p(rate * math.expm1(whole)), abs=1e-2)


def test_no_charge_costs_nothing_and_more_costs_more() -> None:
    assert compose([], DELTA) == 0
    assert site_epsilon([], DELTA) == 0
    few, many = compose([charge(2.0, rate=0.1, steps=10)], DELTA), compose([charge(2.0, rate=0.1, steps=20)], DELTA)
    assert 0 < few < many < 2 * few


def test_classes_compose_in_parallel_and_a_site_pays_for_its_dearest() -> None:
    """Class 0 was in the first two charges, class 1 in the last two, class 2 in the second alone."""
    first, second, third = charge(1.0), charge(2.0, classes=(0, 1, 2)), charge(3.0, classes=(1,))
    own = by_class([first, second, third], DELTA)
    assert own[0] == compose([first, second], DELTA)
    assert own[1] == compose([second, third], DELTA)
    assert own[2] == compose([second], DELTA)
    assert site_epsilon([first, second, third], DELTA) == own[0] == max(own.values())


def test_the_least_noise_is_within_the_budget_and_hardly_more() -> None:
    """For a single Gaussian the exact answer is known: the epsilon of mu = 1 / noise."""
    noise = least_noise(lambda s: compose([charge(s)], DELTA), 3.0)
    assert gaussian_epsilon(1 / noise, DELTA) <= 3.0 < gaussian_epsilon(1 / (0.99 * noise), DELTA)
    assert noise == float(f"{noise:.3g}")


def test_a_budget_that_no_noise_keeps_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"the image counts alone cost 2, but the budget is 1.*Raise privacy.count_noise"
    ):
        least_noise(lambda noise: 2 + 1 / noise, 1.0)
