"""Compare the model after a task with the deployed one, by class and site, and find the bounds that it breaks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dynammo_core.scoring.metrics import Counts, Percent


@dataclass(frozen=True)
class Broken:
    """A bound that a model breaks.

    Attributes:
        bound: `retention`, `worst_site` or `class_recall`.
        points: percentage points that were lost.
        limit: most that may be lost.
        site: the site that lost most; None if no site is measured by itself.
        label: the class that lost most, for `class_recall`.
    """

    bound: str
    points: float
    limit: float
    site: int | None = None
    label: int | None = None


def broken_bounds(before: Counts, after: Counts, known: Sequence[int], bounds: Mapping[str, float]) -> list[Broken]:
    """Return the bounds that a model breaks on the classes which the deployed one knows.

    Only sites whose test images both models answered are compared. A share without images is no loss.

    Args:
        before: int64 [K, C, C] test images by site, true class and answer of the deployed model.
        after: the same of the new model.
        known: the classes that the deployed model has learnt.
        bounds: most points that may be lost, as `GateSettings.bounds`.
    """
    sites = np.flatnonzero((before.sum(axis=(1, 2)) > 0) & (after.sum(axis=(1, 2)) > 0))
    then, now = (_right_and_all(counts[sites], known) for counts in (before, after))
    by_site, by_class, by_both = (_lost(then, now, axis) for axis in ((1,), (0,), ()))
    worst, label = _largest(by_site), _largest(by_class)
    losses: list[tuple[str, float, int | None, int | None]] = []
    if worst is not None:
        losses.append(("retention", float(_lost(then, now, (0, 1))), worst, None))
        losses.append(("worst_site", float(by_site[worst]), worst, None))
    if label is not None:
        losses.append(("class_recall", float(by_class[label]), _largest(by_both[:, label]), known[label]))
    apart = len(before) > 1  # otherwise there is one site, or only sums are known
    return [
        Broken(name, round(points, 4), bounds[name], int(sites[site]) if apart and site is not None else None, label)
        for name, points, site, label in losses
        if name in bounds and points > bounds[name]
    ]


def _right_and_all(counts: Counts, known: Sequence[int]) -> tuple[Counts, Counts]:
    """Return the correct answers and the test images of each known class, each as int64 [K, classes]."""
    return counts[:, list(known), list(known)], counts[:, list(known)].sum(axis=2)


def _lost(then: tuple[Counts, Counts], now: tuple[Counts, Counts], axis: tuple[int, ...]) -> Percent:
    """Return the points of accuracy that were lost, summed over axes; nan where either model was not tested."""
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = [100.0 * right.sum(axis=axis) / images.sum(axis=axis) for right, images in (then, now)]
    return np.asarray(shares[0] - shares[1])


def _largest(lost: Percent) -> int | None:
    """Return the place of the largest loss, or None if none is known."""
    return None if np.isnan(lost).all() else int(np.nanargmax(lost))
