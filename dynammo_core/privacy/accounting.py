"""What a run costs in privacy: every noised answer is a charge, and all charges of a record compose to its epsilon."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Protocol

from dynammo_core.support.errors import ConfigError

MECHANISMS: Mapping[str, str] = MappingProxyType(
    {
        "example": "each site: DP-SGD with Poisson sampling or sums, and counts, all with Gaussian noise",
        "client": "server: mean of shortened updates of all sites with Gaussian noise, in each round",
    }
)
NEIGHBOURS: Mapping[str, str] = MappingProxyType(
    {
        "example": "one training image of one site more or less",
        "client": "one site more or less, with all its images",
    }
)
ACCOUNTANT = "privacy-loss distributions, by dp-accounting"

RESOLUTION = 5e-3
"""Of the accountant's grid of privacy losses; what falls between is rounded up, so epsilon is never too small."""
LEAST_NOISE, MOST_NOISE = 0.1, 1e4


@dataclass(frozen=True)
class Charge:
    """A Gaussian mechanism that was run on a site's records, or will be.

    Attributes:
        task: counted from 0.
        stage: of the plan, or "census".
        round: of the stage.
        noise_multiplier: standard deviation of the noise over the most that one record can change the answer by.
        sampling_rate: probability with which each record enters each of the steps, independently.
        steps: times that the mechanism was run.
        classes: those whose records could enter it; known beforehand, and no matter of which records there are.
    """

    task: int
    stage: str
    round: int
    noise_multiplier: float
    sampling_rate: float
    steps: int
    classes: tuple[int, ...]


class Mechanism(Protocol):
    """What of a charge decides its cost, as of `Charge`."""

    @property
    def noise_multiplier(self) -> float:
        """Deviation over sensitivity."""
        ...

    @property
    def sampling_rate(self) -> float:
        """Probability of a record to enter a step."""
        ...

    @property
    def steps(self) -> int:
        """How often it was run."""
        ...


def compose(charges: Iterable[Mechanism], delta: float) -> float:
    """Epsilon, at `delta`, of a record that may have entered all of the charges; 0 for none.

    Neighbouring data sets differ by one record more or less. Full-batch Gaussians are one Gaussian, whose multiplier to
    the power of -2 is the sum of theirs (Dong, Roth and Su, arXiv 1905.02383, corollary 3.3). With the
    Poisson-subsampled ones it composes by privacy-loss distributions (Koskela et al., arXiv 1906.03049), as
    dp-accounting computes them.
    """
    steps: Counter[tuple[float, float]] = Counter()
    for charge in charges:
        steps[charge.noise_multiplier, charge.sampling_rate] += charge.steps
    return _epsilon(tuple(sorted(steps.items())), delta)


def site_epsilon(charges: Iterable[Charge], delta: float) -> float:
    """Epsilon of a site: that of the class whose records were charged for most.

    Classes part the records, and a charge touches those of its classes alone, so what different classes were charged
    for composes in parallel (McSherry, 2009): one record is of one class.
    """
    return max(by_class(charges, delta).values(), default=0.0)


def by_class(charges: Iterable[Charge], delta: float) -> dict[int, float]:
    """Epsilon of a record of each class that was charged for."""
    every = tuple(charges)
    classes = sorted({label for charge in every for label in charge.classes})
    return {label: compose((charge for charge in every if label in charge.classes), delta) for label in classes}


def least_noise(cost: Callable[[float], float], budget: float) -> float:
    """The least noise multiplier, to three significant digits and rounded up, whose cost stays within a budget.

    Args:
        cost: epsilon by noise multiplier; falls as noise grows.
        budget: epsilon.

    Raises:
        ConfigError: no noise is enough.
    """
    if cost(MOST_NOISE) > budget:
        raise ConfigError(
            f"privacy.epsilon: the counts alone cost {cost(MOST_NOISE):.3g}, and the budget is {budget:g}",
            remedy="Raise privacy.count_noise or privacy.epsilon",
        )
    low, high = math.log(LEAST_NOISE), math.log(MOST_NOISE)
    while high - low > 2e-3:
        middle = (low + high) / 2
        low, high = (low, middle) if cost(math.exp(middle)) <= budget else (middle, high)
    least = math.exp(high)
    unit = 10.0 ** (math.floor(math.log10(least)) - 2)
    return round(math.ceil(least / unit) * unit, 6)


@lru_cache(maxsize=1024)
def _epsilon(steps: tuple[tuple[tuple[float, float], int], ...], delta: float) -> float:
    import dp_accounting as dp  # takes seconds: only where it is asked for
    from dp_accounting.pld import PLDAccountant

    whole = sum(count / noise**2 for (noise, rate), count in steps if rate == 1)
    parts = [dp.GaussianDpEvent(whole**-0.5)] if whole else []
    for (noise, rate), count in steps:
        if rate < 1 and count:
            sampled = dp.PoissonSampledDpEvent(rate, dp.GaussianDpEvent(noise))
            parts.append(dp.SelfComposedDpEvent(sampled, count))
    if not parts:
        return 0.0
    accountant = PLDAccountant(value_discretization_interval=RESOLUTION)
    return float(accountant.compose(dp.ComposedDpEvent(parts)).get_epsilon(delta))
