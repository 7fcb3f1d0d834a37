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
    both = (before.sum(axis=(1, 2)) > 0) & (after.sum(axis=(1, 2)) > 0)
    old, new = (_correct_and_all(counts[both][:, list(known)], known) for counts in (before, after))
    sites = np.flatnonzero(both)
    named = len(before) > 1
    lost = _lost([part.sum(axis=1) for part in old], [part.sum(axis=1) for part in new])
    by_class = _lost([part.sum(axis=0) for part in old], [part.sum(axis=0) for part in new])
    by_both = _lost(old, new)
    worst = _largest(lost)
    falls = {"retention": (_lost([part.sum() for part in old], [part.sum() for part in new]), worst, None)}
    if worst is not None:
        falls["worst_site"] = (lost[worst], worst, None)
    if (label := _largest(by_class)) is not None:
        falls["class_recall"] = (by_class[label], _largest(by_both[:, label]), known[label])
    return [
        Broken(name, round(float(points), 4), bounds[name], int(sites[site]) if named and site is not None else None, c)
        for name, (points, site, c) in falls.items()
        if name in bounds and points > bounds[name]
    ]


def _correct_and_all(counts: Counts, known: Sequence[int]) -> tuple[Counts, Counts]:
    """Return the correct answers and the images of each known class, [K, classes] each."""
    rows = range(len(known))
    return counts[:, rows, list(known)], counts.sum(axis=2)


def _lost(old: Sequence[Counts], new: Sequence[Counts]) -> Percent:
    """Return the points of accuracy that were lost; nan where either model was not tested."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(100.0 * old[0] / old[1] - 100.0 * new[0] / new[1])


def _largest(lost: Percent) -> int | None:
    return None if np.isnan(lost).all() else int(np.nanargmax(lost))
