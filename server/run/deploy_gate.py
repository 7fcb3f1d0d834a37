"""Compare the model after a task with the deployed one, by class and site, and find the bounds that it breaks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from dynammo_core.aggregation.voices import shares_kept
from dynammo_core.scoring.metrics import Counts, Percent

Table: TypeAlias = tuple[NDArray[Any], NDArray[Any]]
"""Right answers and all images, each [K, classes]."""
FEWEST_IMAGES = 10
"""Fewest test images of known classes by which a site can be the worst: one or two say nothing of a model."""


@dataclass(frozen=True)
class Broken:
    """A bound that a model breaks.

    Attributes:
        bound: `retention`, `worst_site` or `class_recall`.
        points: percentage points that were lost; None if no site answered both tests.
        limit: most that may be lost.
        site: the site that lost most; None if no site is measured by itself.
        label: the class that lost most, for `class_recall`.
    """

    bound: str
    points: float | None
    limit: float
    site: int | None = None
    label: int | None = None


def broken_bounds(
    before: Counts, after: Counts, known: Sequence[int], bounds: Mapping[str, float], largest_share: float = 1.0
) -> list[Broken]:
    """Return the bounds that a model breaks on the classes which the deployed one knows.

    Only sites whose test images both models answered are compared, and if there is none, every bound is broken. A share
    without images is no loss. What a site claims can be a lie: of what is counted over all sites it has only a share.

    Args:
        before: int64 [K, C, C] test images by site, true class and answer of the deployed model.
        after: the same of the new model.
        known: the classes that the deployed model has learnt.
        bounds: most points that may be lost, as `GateSettings.bounds`.
        largest_share: of one site in the images of several, as `limits.largest_share`.
    """
    sites = np.flatnonzero((before.sum(axis=(1, 2)) > 0) & (after.sum(axis=(1, 2)) > 0))
    if not len(sites):
        return [Broken(name, None, limit) for name, limit in bounds.items()]
    then, now = (_right_and_all(counts[sites], known) for counts in (before, after))
    by_site, by_both = (_lost(then, now, axis) for axis in ((1,), ()))
    held, held_by_class = (
        [_held_to_share(counts, largest_share, by_class=by_class) for counts in (then, now)]
        for by_class in (False, True)
    )
    over_all, by_class = _lost(held[0], held[1], (0, 1)), _lost(held_by_class[0], held_by_class[1], (0,))
    worst, label = _largest(by_site), _largest(by_class)
    enough = [min(images[site].sum() for _, images in (then, now)) >= FEWEST_IMAGES for site in range(len(sites))]
    worst_of_enough = _largest(np.where(enough, by_site, np.nan))
    losses: list[tuple[str, float, int | None, int | None]] = []
    if worst is not None:
        losses.append(("retention", float(over_all), worst, None))
    if worst_of_enough is not None:
        losses.append(("worst_site", float(by_site[worst_of_enough]), worst_of_enough, None))
    if label is not None:
        losses.append(("class_recall", float(by_class[label]), _largest(by_both[:, label]), known[label]))
    apart = len(before) > 1  # otherwise there is one site, or only sums are known
    return [
        Broken(name, round(points, 4), bounds[name], int(sites[site]) if apart and site is not None else None, label)
        for name, points, site, label in losses
        if name in bounds and points > bounds[name]
    ]


def _right_and_all(counts: Counts, known: Sequence[int]) -> Table:
    """Return the correct answers and the test images of each known class, each as int64 [K, classes]."""
    return counts[:, list(known), list(known)], counts[:, list(known)].sum(axis=2)


def _held_to_share(counts: Table, largest: float, *, by_class: bool) -> Table:
    """Scale the numbers of each site, or of each site and class, so that none exceeds a share of the images of all."""
    right, images = counts
    compared = images if by_class else images.sum(axis=1, keepdims=True)
    kept = np.stack([_kept(column, largest) for column in compared.T], axis=1)
    return right * kept, images * kept


def _kept(images: NDArray[Any], largest: float) -> NDArray[Any]:
    """Return the factor by which each site's images count, float64 [K]."""
    kept, tested = np.ones(len(images)), images > 0
    if tested.any():
        kept[tested] = shares_kept(torch.from_numpy(images[tested].astype(np.float64)), largest).numpy()
    return kept


def _lost(then: Table, now: Table, axis: tuple[int, ...]) -> Percent:
    """Return the points of accuracy that were lost, summed over axes; nan where either model was not tested."""
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = [100.0 * right.sum(axis=axis) / images.sum(axis=axis) for right, images in (then, now)]
    return np.asarray(shares[0] - shares[1])


def _largest(lost: Percent) -> int | None:
    """Return the place of the largest loss, or None if none is known."""
    return None if np.isnan(lost).all() else int(np.nanargmax(lost))
