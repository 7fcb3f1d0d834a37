"""What a run costs in privacy: every noised answer is a charge, and all charges of a record compose to its epsilon."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Literal, Protocol

from dynammo_core.support.errors import ConfigError

MECHANISMS: Mapping[str, str] = MappingProxyType(
    {
        "example": "each site: DP-SGD with Poisson sampling or sums, and counts, all with Gaussian noise",
        "client": "server: mean of shortened updates of all sites with Gaussian noise, in each round",
    }
)
NEIGHBOURS: Mapping[tuple[str, str], str] = MappingProxyType(
    {
        ("example", "image"): "one training image of one site more or less",
        ("example", "patient"): "one patient of one site more or less, with all training images",
        ("client", "image"): "one site more or less, with all its images",
        ("client", "patient"): "one site more or less, with all its images",
    }
)
"""What differs between two data sets that nobody can tell apart, by mechanism and unit."""
ACCOUNTANT = "privacy-loss distributions, by dp-accounting"

PRIVACY_EXTRA = "pip install '.[privacy]' in the checkout"
"""The remedy if the packages for differential privacy are not installed: most sites do not need them."""

RESOLUTION = 5e-3
"""Step of the accountant's grid of privacy losses; values between are rounded up, so epsilon is never too small."""
LEAST_NOISE, MOST_NOISE = 0.1, 1e4


@dataclass(frozen=True)
class Charge:
    """One use of a Gaussian mechanism on a site's records, past or planned.

    Attributes:
        task: the task, counted from 0.
        stage: name of a stage of the plan, or "census".
        round: round of the stage.
        noise_multiplier: standard deviation of the noise over the most that one record can change the answer by.
        sampling_rate: probability with which each record enters each of the steps, independently.
        steps: how many times the mechanism was run.
        classes: the classes whose records could enter it; known beforehand, whatever records there are.
        unit: whether the noise hides an image or a patient.
    """

    task: int
    stage: str
    round: int
    noise_multiplier: float
    sampling_rate: float
    steps: int
    classes: tuple[int, ...]
    unit: Literal["image", "patient"] = "image"


class Mechanism(Protocol):
    """The numbers of a `Charge` that decide its cost."""

    @property
    def noise_multiplier(self) -> float:
        """Return the standard deviation of the noise over the sensitivity."""
        ...

    @property
    def sampling_rate(self) -> float:
        """Return the probability with which a record enters a step."""
        ...

    @property
    def steps(self) -> int:
        """Return how many times the mechanism was run."""
        ...


def compose(charges: Iterable[Mechanism], delta: float) -> float:
    """Compute epsilon, at `delta`, for a record that may have entered all of the charges; 0 without charges.

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
    """Compute the epsilon of a site: that of the class whose records were charged for most.

    Each image belongs to one class, and a charge touches only the images of its classes, so charges for different
    classes compose in parallel (McSherry, 2009). A patient may have images of any class, and is charged for everything.
    """
    return max(by_class(charges, delta).values(), default=0.0)


def by_class(charges: Iterable[Charge], delta: float) -> dict[int, float]:
    """Compute epsilon for a record of each class that was charged for, by class."""
    every = tuple(charges)
    classes = sorted({label for charge in every for label in charge.classes})
    return {
        label: compose((charge for charge in every if charge.unit == "patient" or label in charge.classes), delta)
        for label in classes
    }


def least_noise(cost: Callable[[float], float], budget: float) -> float:
    """Return the least noise multiplier whose cost stays within a budget, rounded up to three significant digits.

    Args:
        cost: returns epsilon for a noise multiplier; falls as noise grows.
        budget: the largest epsilon allowed.

    Raises:
        ConfigError: no noise is enough.
    """
    if cost(MOST_NOISE) > budget:
        raise ConfigError(
            f"privacy.epsilon: the image counts alone cost {cost(MOST_NOISE):.3g}, but the budget is {budget:g}",
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
    try:
        import dp_accounting as dp  # takes seconds to import: only if needed
        from dp_accounting.pld import PLDAccountant
    except ModuleNotFoundError as error:
        raise ConfigError(f"differential privacy needs {error.name}", remedy=PRIVACY_EXTRA) from error

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
