"""Say beside each accuracy on the report's cards how many test images it rests on, and how far chance could move it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dynammo_core.scoring.clinical import Share, mean_share, share
from dynammo_core.scoring.metrics import Counts
from server.report.page import number
from server.run_directory.run_files import RunFiles


def card_notes(run: RunFiles) -> dict[str, str]:
    """Return, by the summary's key, a sentence with the 95 % interval and the test images; none before the first test.

    Tests after several tasks share images, so the interval of their mean is the mean of their intervals, the widest
    that can be. The interval at the worst site is that of this site alone: of many sites one is lowest by chance, too.
    """
    if run.confusion_by_site is None:
        return {}
    sites, counts = run.confusion_by_site
    images, right = counts.sum(axis=-1), np.diagonal(counts, axis1=-2, axis2=-1)  # both [T, K, C]
    after_tasks = share(right.sum(axis=(1, 2)), images.sum(axis=(1, 2)))
    mean = Share(*(np.asarray(ends.mean()) for ends in (after_tasks.value, after_tasks.low, after_tasks.high)))
    first, last = images[0].sum(), images[-1].sum()
    right, images = right[-1], images[-1]
    pooled, classes = mean_share(share(right.sum(axis=0), images.sum(axis=0))), (images.sum(axis=0) > 0).sum()
    names = [run.site_name(site) for site in sites]
    return {
        "last_accuracy": f"{_interval(share(right.sum(), images.sum()))}, of {last} test images.",
        "average_incremental_accuracy": f"{_interval(mean)} at the widest, of {first} to {last} test images.",
        "mean_class_recall": f"{_interval(pooled)}, of {last} test images of {classes} classes.",
        "worst_site_accuracy": _worst(names, images, [share(*own) for own in _sums(right, images)]),
        "worst_site_mean_class_recall": _worst(
            names, images, [mean_share(share(*own)) for own in zip(right, images, strict=True)]
        ),
    }


def _sums(right: Counts, images: Counts) -> list[tuple[int, int]]:
    return list(zip(right.sum(axis=1).tolist(), images.sum(axis=1).tolist(), strict=True))


def _worst(names: Sequence[str], images: Counts, shares: Sequence[Share]) -> str:
    """Return the sentence for the lowest share; empty if no site has test images."""
    known = [site for site, own in enumerate(shares) if not np.isnan(own.value)]
    if not known:
        return ""
    worst = min(known, key=lambda site: float(shares[site].value))
    return f"At {names[worst]}: {_interval(shares[worst])}, of {images[worst].sum()} test images."


def _interval(known: Share) -> str:
    return f"95 % interval {number(float(known.low))}–{number(float(known.high))}"
