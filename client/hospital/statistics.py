"""Count a site's images before any experiment; what would speak of few of them is counted nowhere."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from client.consent.fewest import Fewest
from client.consent.policy import Policy
from client.consent.settings import SiteSettings
from client.state.known_images import hash_cache
from client.state.withdrawal import WithdrawalLedger
from dynammo_core.configuration.settings import DataSettings
from dynammo_core.data.index.contents import hashes_kept_in
from dynammo_core.data.index.opening import open_own
from dynammo_core.data.samples import Split
from dynammo_core.data.sources import select
from dynammo_core.memory.private_files import write_private
from dynammo_core.support.errors import CheckpointError, PolicyError, ProtocolError
from dynammo_core.wire.statistics import GREYS, SIDES, Statistics, steady

TOLD = "statistics.json"
"""What this site told last, in the folder of its memory."""


def own_statistics(settings: SiteSettings, policy: Policy) -> Statistics:
    """Count this hospital's images, none of which was withdrawn; or repeat what it told if only a few have changed.

    Raises:
        PolicyError: its policy tells no statistics, or less than what was told last, which differs by a few.
        DataError: an image cannot be read.
        CheckpointError: what it told last cannot be read or kept.
    """
    if not policy.statistics:
        raise PolicyError("this site's policy gives no statistics", remedy="Set `statistics: true` in its policy")
    own, ledger = settings.data, WithdrawalLedger(settings.memory.folder)
    with hashes_kept_in(hash_cache(settings.memory)):
        dataset = open_own(DataSettings(dataset=own.dataset, root=own.root), seed=0)
    splits = [ledger.allowed_split(split) for split in (dataset.train, dataset.test)]
    now = statistics_of(dataset.class_names, splits, policy.fewest)
    path = settings.memory.folder / TOLD
    least = policy.fewest.images, policy.fewest.patients
    told = steady(_told(path), now, *least)
    if few := told.too_few(*least):
        raise PolicyError(
            f"this site told of fewer images or patients than its policy now permits ({few[0]}), and what differs from "
            "that by a few would tell of these few",
            remedy=f"Once nobody remembers what it told, remove {path}; or take back `fewest_images` or "
            "`fewest_patients` in its policy",
        )
    try:
        write_private(path, json.dumps(vars(told)).encode())
    except OSError as error:
        raise CheckpointError(
            f"cannot write {path}: {error.strerror}", remedy="Free disk space or give write permission"
        ) from error
    return told


def statistics_of(class_names: Sequence[str], splits: Sequence[Split], fewest: Fewest) -> Statistics:
    """Count the images of a site by class, and by size and brightness those that are counted by class.

    An image of a class with too few of its side is in no count at all, so that no total tells what is left out. A bin
    with too few is left out together with other bins, for the total of all bins is known.

    Args:
        class_names: names of all classes.
        splits: training and test images.
        fewest: the least that a count may speak of.
    """
    counts = [fewest.class_counts(split.labels, split.patient_ids, len(class_names)) for split in splits]
    kept = [select(split, np.flatnonzero(count[split.labels])) for split, count in zip(splits, counts, strict=True)]
    persons = [_patients(split, len(class_names)) for split in kept]
    named = np.flatnonzero(sum(counts))
    by_class = (tuple(table[named].tolist()) for pair in zip(counts, persons, strict=True) for table in pair)
    read = [_looked_at(split, at) for split in kept for at in range(len(split.labels))]
    patients = [patient for split in kept for patient in split.patient_ids]
    histograms = (
        _histogram([values[place] for values in read], edges, patients, fewest)
        for place, edges in enumerate((SIDES, GREYS))
    )
    return Statistics(tuple(class_names[label] for label in named.tolist()), *by_class, *histograms)


def _patients(split: Split, classes: int) -> NDArray[np.int64]:
    """Count the patients of each class."""
    shown = {*zip(split.labels.tolist(), split.patient_ids, strict=True)}
    return np.bincount(np.array([label for label, _ in shown], dtype=np.int64), minlength=classes).astype(np.int64)


def _looked_at(split: Split, place: int) -> tuple[float, float]:
    """Return the shorter side of an image, and its mean value."""
    image = split.source.read(place)
    return min(image.shape[:2]), float(image.mean())


def _histogram(
    values: Sequence[float], edges: Sequence[int], patients: Sequence[str], fewest: Fewest
) -> tuple[int, ...]:
    """Count values by bin; bins with too few are 0, and so many others that two or more hide enough together."""
    bins = np.digitize(np.array(values, dtype=np.float64), edges).astype(np.int64) - 1
    counts = np.bincount(bins, minlength=len(edges))
    given = fewest.class_counts(bins, patients, len(edges))
    while (hidden := (counts > 0) & (given == 0)).any() and given.any():
        persons = [patient for patient, bin_ in zip(patients, bins.tolist(), strict=True) if hidden[bin_]]
        if hidden.sum() > 1 and fewest.enough(persons):
            break
        given[np.where(given > 0, given, np.iinfo(np.int64).max).argmin()] = 0
    return tuple(given.tolist())


def _told(path: Path) -> Statistics | None:
    try:
        fields = json.loads(path.read_bytes())
        return Statistics(**{name: tuple(value) for name, value in fields.items()})
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, AttributeError, ProtocolError) as error:
        raise CheckpointError(
            f"what this site told last cannot be read from {path} ({type(error).__name__}: {error})",
            remedy="Restore the file; without it, two answers may differ by a single image",
        ) from error
