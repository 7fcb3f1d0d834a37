"""Growth as a power: the slope between logarithms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Growth:
    """How a quantity grows: its value at each point, and y ~ x^exponent over all points, and over the last two.

    Where there is a constant part the second is the larger, and nearer to what becomes of it. None: it is 0 somewhere.
    """

    values: tuple[float, ...]
    exponent: float | None
    last: float | None

    @staticmethod
    def of(points: Sequence[int], values: Sequence[float]) -> Growth:
        """The growth of a quantity that was measured at two points or more."""
        return Growth(tuple(values), exponent(points, values), exponent(points[-2:], values[-2:]))


def exponent(points: Sequence[int], values: Sequence[float]) -> float | None:
    """The slope of log(values) on log(points) by least squares; None where a value is not positive."""
    if min(values) <= 0 or len(set(points)) < 2:
        return None
    x, y = np.log(np.array(points, dtype=np.float64)), np.log(np.array(values, dtype=np.float64))
    x -= x.mean()
    return float(np.round(x @ (y - y.mean()) / (x @ x), 6) + 0.0)
