"""Dealing images out to sites so that all images of a patient, in training and test, are at one of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from dynammo_core.support.errors import DataError

Counts = NDArray[np.int64]
Indices = NDArray[np.int64]


def deal_patients(
    labels: Indices,
    patients: Sequence[str],
    wanted: Counts,
    rng: np.random.Generator,
    settled: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """Choose a site for each patient, so that the sites' images come near to the numbers wanted of each class.

    Patients with most images come first, equal ones in random order; each goes where the fewest of its images are more
    than is wanted there, and of such sites to the one that wants most. Every site gets a patient, unless some are
    settled.

    Args:
        labels: [N] class indices.
        patients: N identifiers.
        wanted: [K, C] images of each class that each site should get.
        rng: settles what is equal.
        settled: the site of patients that have one already.

    Returns:
        The site of each patient, the settled ones included.

    Raises:
        DataError: there are fewer patients than sites, and none is settled.
    """
    held = _held(labels, patients, wanted.shape[1])
    sites = dict(settled or {})
    left = wanted.astype(np.float64)
    for patient, count in held.items():
        if patient in sites:
            left[sites[patient]] -= count
    names = [name for name in held if name not in sites]
    if settled is None and len(names) < len(wanted):
        raise DataError(
            f"federation.sites is {len(wanted)}, and there are training images of {len(names)} patients",
            accepted=f"at most {len(names)} sites, so that each has a patient",
            remedy="Lower federation.sites, or raise data.train_per_class",
        )
    order = rng.permutation(len(names))
    sizes = np.array([held[names[i]].sum() for i in order])
    queue = [names[i] for i in order[np.argsort(-sizes, kind="stable")]]
    for position, patient in enumerate(queue):
        count = held[patient]
        surplus = np.maximum(count - np.maximum(left, 0), 0).sum(axis=1)
        empty = _empty(sites, len(wanted)) if settled is None else []
        if len(queue) - position <= len(empty):
            surplus[[site for site in range(len(wanted)) if site not in empty]] = np.inf
        best = np.lexsort((rng.random(len(wanted)), -left.sum(axis=1), surplus))
        sites[patient] = int(best[0])
        left[best[0]] -= count
    return sites


def indices_of_sites(patients: Sequence[str], sites: Mapping[str, int], count: int) -> tuple[Indices, ...]:
    """Return, for each of `count` sites, the indices, ascending, of the images of its patients."""
    owner = np.array([sites[patient] for patient in patients], dtype=np.int64)
    return tuple(np.flatnonzero(owner == site) for site in range(count))


def _held(labels: Indices, patients: Sequence[str], classes: int) -> dict[str, Counts]:
    """Return the number of images of each class that each patient has, [C]."""
    held: dict[str, Counts] = {}
    for label, patient in zip(labels.tolist(), patients, strict=True):
        held.setdefault(patient, np.zeros(classes, dtype=np.int64))[label] += 1
    return held


def _empty(sites: Mapping[str, int], count: int) -> list[int]:
    return sorted(set(range(count)) - set(sites.values()))
