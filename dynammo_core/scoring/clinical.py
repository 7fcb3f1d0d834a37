"""Measures that clinicians read, one class against all others, computed from a confusion matrix alone.

Shares are in percent, and nan without images. Intervals take images to be independent; several of one patient are not,
so that the true interval is wider.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dynammo_core.scoring.metrics import Counts, Percent

NORMAL_95 = 1.959964
"""Quantile of the normal distribution that leaves 2.5 % above it."""


@dataclass(frozen=True)
class Share:
    """Shares with their 95 % intervals, each float64 of one shape.

    Attributes:
        value: part of whole, in percent.
        low: lower end of the interval.
        high: upper end of the interval.
    """

    value: Percent
    low: Percent
    high: Percent


@dataclass(frozen=True)
class ClassMeasures:
    """Measures of C classes, each against all others.

    Attributes:
        images: int64 [C], test images of the class.
        sensitivity: of images of the class, those recognised (recall).
        specificity: of images of other classes, those not taken for it.
        precision: of images taken for the class, those that are of it (positive predictive value among test images).
        f1: harmonic mean of precision and sensitivity.
    """

    images: NDArray[np.int64]
    sensitivity: Share
    specificity: Share
    precision: Share
    f1: Share


def share(part: ArrayLike, whole: ArrayLike) -> Share:
    """Compute shares with their 95 % score intervals (Wilson, 1927), which hold near 0 and 100 % and for few images.

    Args:
        part: counts of images that have a property.
        whole: counts of all images, of the same shape; 0 gives nan.
    """
    k, n = np.asarray(part, np.float64), np.asarray(whole, np.float64)
    n = np.where(n > 0, n, np.nan)
    p, z2 = k / n, NORMAL_95**2
    middle, scale = p + z2 / (2 * n), 1 + z2 / n
    reach = NORMAL_95 * np.sqrt(p * (1 - p) / n + z2 / (4 * n**2))
    return Share(100 * p, 100 * np.maximum((middle - reach) / scale, 0), 100 * np.minimum((middle + reach) / scale, 1))


def mean_share(shares: Share) -> Share:
    """Average shares of separate images, such as recalls of classes, with a 95 % interval (Zou and Donner, 2008).

    The interval recovers each share's variance from its own interval, so it holds near 0 and 100 %, too.

    Args:
        shares: [N] shares; those that are nan have no say, and of nothing else the mean is nan.
    """
    known = np.isfinite(shares.value).sum() or np.nan
    middle = np.nansum(shares.value) / known
    below = np.sqrt(np.nansum((shares.value - shares.low) ** 2)) / known
    above = np.sqrt(np.nansum((shares.high - shares.value) ** 2)) / known
    return Share(*map(np.asarray, (middle, middle - below, middle + above)))


def class_measures(confusion: Counts) -> ClassMeasures:
    """Compute each class's measures against all other classes.

    F1 is 2 p / (1 + p), where p = true positives / (true positives + false positives + false negatives) is a share of
    images: its interval is that of p, carried over (Hand et al., F*, 2021).

    Args:
        confusion: int64 [C, C] counts by true class (row) and predicted class (column).
    """
    right, images, taken = np.diagonal(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    others = confusion.sum() - images
    union = share(right, images + taken - right)
    f1 = Share(*(200 * value / (100 + value) for value in (union.value, union.low, union.high)))
    return ClassMeasures(
        images=images,
        sensitivity=share(right, images),
        specificity=share(others - (taken - right), others),
        precision=share(right, taken),
        f1=f1,
    )
