"""Data sets from lists of labelled image files: classes checked, split made, no image in both train and test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dynammo_core.data.images.decoding import named
from dynammo_core.data.samples import Dataset, Split
from dynammo_core.data.sources import FileSource, file_keys
from dynammo_core.support.errors import DataError, nearest_match
from dynammo_core.support.seeding import derive_seed

TEST_SHARE = 0.2
SPLIT_SEED = 0
"""Random seed of every 80/20 split: a constant, so that all runs and seeds of a study are tested on the same images."""


@dataclass(frozen=True)
class ImageRecord:
    """An image file as a folder or a manifest names it.

    Attributes:
        place: where it was named, for messages ("row 7 of manifest.csv"), or empty.
        split: the part it belongs to, None if the data do not say; the same for all records of a data set.
        site: the site it belongs to, None if the data do not say; the same for all records of a data set.
        patient: the person (or the lesion or study) it shows, None if the data do not say.
    """

    path: Path
    label: str
    record_id: str
    place: str = ""
    split: Literal["train", "test"] | None = None
    site: str | None = None
    patient: str | None = None


def require_registered(label: str, class_names: Sequence[str], where: str) -> None:
    """Refuse a label that is not a class name.

    Raises:
        DataError: the label is unknown; the message names it, `where` it stands and the registry.
    """
    if label not in class_names:
        raise DataError(
            f"the label {label!r} of {where} is not in the registry{nearest_match(label, class_names)}",
            accepted=", ".join(class_names),
            remedy="Correct the label, or add it to data.classes at every site",
        )


def assemble(records: Sequence[ImageRecord], class_names: tuple[str, ...], where: str, *, absent: bool) -> Dataset:
    """Make a data set of image files.

    If the records name no split, `seeded_split` makes one.

    Args:
        records: the images; they keep their order within each split.
        class_names: the registry.
        where: folder or file of the data, for messages.
        absent: whether a class may lack images, for training, for testing or both: a site need not hold every class.

    Raises:
        DataError: a label is not in the registry, a class is empty, a file is missing, or an image is in both splits.
    """
    for record in records:
        require_registered(record.label, class_names, named(record.path, record.place))
    index = {name: i for i, name in enumerate(class_names)}
    labels = np.array([index[record.label] for record in records], dtype=np.int64)
    keys = file_keys([record.path for record in records], [record.place for record in records])
    if any(record.split for record in records):
        test = np.array([record.split == "test" for record in records])
        _refuse_leaks(records, keys, test)
    else:
        test = seeded_split(labels, keys)
    refuse_empty_classes(labels, test, class_names, where, absent=absent)
    return Dataset(class_names, _split(records, labels, ~test), _split(records, labels, test))


def seeded_split(labels: NDArray[np.int64], keys: Sequence[str]) -> NDArray[np.bool_]:
    """Choose the test images: a fifth of each class (at least one, never all), drawn with `SPLIT_SEED`.

    Images with the same key have the same content and stay on one side, whatever their labels.

    Args:
        labels: [N] class indices.
        keys: N content keys.

    Returns:
        Booleans [N], true for a test image.
    """
    _, first, group = np.unique(np.array(keys, dtype=np.str_), return_index=True, return_inverse=True)
    # numpy numbers the groups by their keys; numbering them by first appearance makes the split one of the order alone
    appearance = np.argsort(first, kind="stable")
    rank = np.empty_like(appearance)
    rank[appearance] = np.arange(len(appearance))
    group, group_labels = rank[group], labels[first[appearance]]
    in_test = np.zeros(len(group_labels), dtype=np.bool_)
    for label in np.unique(group_labels).tolist():
        members = np.flatnonzero(group_labels == label)
        count = min(max(round(TEST_SHARE * len(members)), 1), len(members) - 1)
        order = np.random.default_rng(derive_seed(SPLIT_SEED, "split", label)).permutation(len(members))
        in_test[members[order[:count]]] = True
    return in_test[group]


def refuse_empty_classes(
    labels: NDArray[np.int64], test: NDArray[np.bool_], class_names: tuple[str, ...], where: str, *, absent: bool
) -> None:
    """Refuse a class without training or without test images, unless classes may be `absent`.

    Raises:
        DataError: a class lacks images; the message names it and its counts.
    """
    train_counts = np.bincount(labels[~test], minlength=len(class_names)).tolist()
    test_counts = np.bincount(labels[test], minlength=len(class_names)).tolist()
    for name, train_count, test_count in zip(class_names, train_counts, test_counts, strict=True):
        if absent or (train_count and test_count):
            continue
        raise DataError(
            f"the class {name!r} has {train_count} training and {test_count} test images in {where}",
            accepted="at least one of each; where no split is given, at least two images with different content",
            remedy="Add images of the class or take the class out",
        )


def _refuse_leaks(records: Sequence[ImageRecord], keys: Sequence[str], test: NDArray[np.bool_]) -> None:
    train = {key: i for i, key in enumerate(keys) if not test[i]}
    leaks = [(train[key], i) for i, key in enumerate(keys) if test[i] and key in train]
    if leaks:
        one, other = (named(records[i].path, records[i].place) for i in leaks[0])
        raise DataError(
            f"the same image (by its bytes) is in train and in test, {len(leaks)} in all; the first is {one}, "
            f"which is also {other}",
            remedy="Take it out of one of the two: a test on training images says nothing",
        )


def _split(records: Sequence[ImageRecord], labels: NDArray[np.int64], chosen: NDArray[np.bool_]) -> Split:
    part = [record for record, keep in zip(records, chosen.tolist(), strict=True) if keep]
    sites = tuple(record.site for record in part if record.site is not None)
    patients = tuple(record.patient or record.record_id for record in part)
    return Split(
        source=FileSource(tuple(record.path for record in part), tuple(record.place for record in part)),
        labels=labels[chosen],
        record_ids=tuple(record.record_id for record in part),
        sites=sites if sites else None,
        patients=patients if any(record.patient for record in records) else (),
    )
