"""Data sets from lists of labelled image files: labels and files checked, split made, no image on both sides of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dynammo_core.configuration.settings import DataSettings
from dynammo_core.data.images.decoding import named
from dynammo_core.data.index.contents import Content, file_contents
from dynammo_core.data.index.duplicates import Duplicates, leaks, note_copies, repeated_files
from dynammo_core.data.index.image_files import require_utf8
from dynammo_core.data.index.labels import refuse_two_spellings, refuse_unclear_labels, require_registered
from dynammo_core.data.index.sides import split_by_group
from dynammo_core.data.samples import Dataset, Split
from dynammo_core.data.sources import FileSource, select
from dynammo_core.support.errors import DataError


@dataclass(frozen=True)
class ImageRecord:
    """An image file as a folder or a manifest names it.

    Attributes:
        place: where it was named, for messages ("row 7 of manifest.csv"), or empty.
        split: the part it belongs to, None if the data do not say; the same for all records of a data set.
        site: the site it belongs to, None if the data do not say; the same for all records of a data set.
        patient: the person (or the lesion or study) it shows, None if the data do not say; then a DICOM file may.
    """

    path: Path
    label: str
    record_id: str
    place: str = ""
    split: Literal["train", "test"] | None = None
    site: str | None = None
    patient: str | None = None


def assemble(
    settings: DataSettings,
    records: Sequence[ImageRecord],
    class_names: tuple[str, ...],
    where: str,
    *,
    absent: bool,
    tell_patients: bool = False,
    notes: Sequence[str] = (),
) -> Dataset:
    """Make a data set of image files.

    If the records name no split, or `data.split` is patient, `split_by_group` makes one, by patient if known, else by
    content.

    Args:
        settings: how the data are split, and what becomes of duplicates.
        records: the images; they keep their order within each split.
        class_names: the registry.
        where: folder or file of the data, for messages.
        absent: whether a class may lack images, for training, for testing or both: a site need not hold every class.
        tell_patients: whether patients on both sides of a published split are counted in a note, and not refused.
        notes: what a person should know of how the records were read.

    Raises:
        DataError: a label is unclear or not in the registry, a patient or site is spelt in two ways, a class is empty,
            a file is missing, or images contradict each other or are on both sides.
    """
    refuse_unclear_labels(Counter(record.label for record in records), where, settings.classes)
    for record in records:
        require_utf8(record.path)
        require_registered(record.label, class_names, named(record.path, record.place))
    for what in ("patient", "site"):
        refuse_two_spellings(what, ((getattr(record, what), named(record.path, record.place)) for record in records))
    files = file_contents([record.path for record in records], [record.place for record in records], where)
    records = [_with_patient(record, file) for record, file in zip(records, files, strict=True)]
    hashes = [file.sha256 for file in files]
    repeated = repeated_files(records, hashes, settings.duplicates)
    records, contents = _without(repeated, records, hashes)
    drawn = settings.split == "patient" or not any(record.split for record in records)
    index = {name: i for i, name in enumerate(class_names)}
    labels = np.array([index[record.label] for record in records], dtype=np.int64)
    if drawn:
        test = split_by_group(labels, _groups(records, contents))
    else:
        test = np.array([record.split == "test" for record in records], dtype=np.bool_)
    leaking = leaks(records, contents, test.tolist(), settings.duplicates, tell_patients=tell_patients and not drawn)
    kept = np.array([i not in leaking.left_out for i in range(len(records))], dtype=np.bool_)
    refuse_empty_classes(labels[kept], test[kept], class_names, where, absent=absent)
    whole = _whole(settings, records, labels, contents)
    again = note_copies(list(compress(records, kept.tolist())), list(compress(contents, kept.tolist())))
    train_split, test_split = (select(whole, np.flatnonzero(kept & side)) for side in (~test, test))
    return Dataset(class_names, train_split, test_split, drawn, (*notes, *repeated.notes, *leaking.notes, *again))


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
            accepted="at least one of each; where no split is given, images of at least two patients, or with two "
            "contents",
            remedy="Add images of the class or take the class out; if DICOM files name one patient for many, as after "
            "de-identification, name the patients in a manifest",
        )


def _with_patient(record: ImageRecord, file: Content) -> ImageRecord:
    """Return a record with the patient that its DICOM file names, unless the data say who it is."""
    return record if record.patient or not file.patient else replace(record, patient=file.patient)


def _without(
    duplicates: Duplicates, records: Sequence[ImageRecord], contents: Sequence[str]
) -> tuple[Sequence[ImageRecord], Sequence[str]]:
    kept = [i for i in range(len(records)) if i not in duplicates.left_out]
    return [records[i] for i in kept], [contents[i] for i in kept]


def _groups(records: Sequence[ImageRecord], contents: Sequence[str]) -> list[str]:
    """Return what keeps images together: the patient, else a record if it has several images, else the content."""
    images = Counter(record.record_id for record in records)
    return [
        record.patient or (record.record_id if images[record.record_id] > 1 else content)
        for record, content in zip(records, contents, strict=True)
    ]


def _whole(
    settings: DataSettings, records: Sequence[ImageRecord], labels: NDArray[np.int64], contents: Sequence[str]
) -> Split:
    sites = tuple(record.site for record in records if record.site is not None)
    patients = tuple(record.patient or content for record, content in zip(records, contents, strict=True))
    return Split(
        source=FileSource(
            tuple(record.path for record in records), tuple(record.place for record in records), settings.reading
        ),
        labels=labels,
        record_ids=tuple(record.record_id for record in records),
        sites=sites if sites else None,
        patients=patients if any(record.patient for record in records) else (),
        contents=tuple(contents),
    )
