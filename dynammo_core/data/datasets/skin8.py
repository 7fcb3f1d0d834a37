"""SKIN8: the balanced part of ISIC 2019 on which ACL (arXiv 2304.09042) and DynaMMo are measured, four tasks of two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Literal

from dynammo_core.configuration.settings import DataSettings
from dynammo_core.data.datasets.isic2019 import (
    GROUND_TRUTH,
    IMAGES,
    METADATA,
    SOURCE,
    read_ground_truth,
    with_lesions,
)
from dynammo_core.data.index.contents import file_contents
from dynammo_core.data.index.folders import require_folder
from dynammo_core.data.index.records import ImageRecord, assemble
from dynammo_core.data.index.sides import SPLIT_SEED, fraction
from dynammo_core.data.samples import Dataset
from dynammo_core.support.errors import DataError

Part = Literal["train", "test"]

CLASSES = ("BKL", "MEL", "DF", "NV", "SCC", "BCC", "AK", "VASC")
"""The classes as ACL's lists number them: the protocol's fixed order, two per task."""

MOST_IMAGES = 628
TEST_PARTS = 6
LISTS: Mapping[Part, str] = {"train": "skin8_train_500.txt", "test": "skin8_test_500.txt"}
LISTS_SOURCE = "https://github.com/GiantJun/CL_Pytorch (its folder datasets)"
LAYOUT = (
    f"ROOT/{IMAGES}/<image>.jpg and ROOT/{GROUND_TRUTH}, from {SOURCE}; optionally ROOT/{METADATA}, from there too, "
    f"and the protocol's own lists ROOT/{LISTS['train']} and ROOT/{LISTS['test']}, from {LISTS_SOURCE}"
)


def load_skin8(settings: DataSettings) -> Dataset:
    """Load 3,555 training and 705 test images of ISIC 2019's 25,331; the protocol's metric is the mean class recall.

    If the lists that ACL's authors published are in `data.root`, they are the split. Else `protocol_split` draws one of
    the same sizes with a fixed seed. It keeps together images with the same bytes and, if the table of metadata is
    there, images of one lesion (without the table the draw differs). The published lists are taken as they are, and a
    note tells how many lesions they have on both sides; with `data.split: patient` the split is drawn in spite of them.

    Raises:
        DataError: a folder or table is missing or contradictory, or `assemble` refuses the images.
    """
    root = require_folder(settings, LAYOUT)
    records = with_lesions(root, read_ground_truth(settings, root, LAYOUT))
    if settings.split == "published" and any((root / name).is_file() for name in LISTS.values()):
        drawn, chosen = False, _listed(root, {record.record_id: record for record in records})
    else:
        drawn = True
        parts = protocol_split([record.label for record in records], _groups(root, records))
        chosen = [replace(record, split=part) for record, part in zip(records, parts, strict=True) if part]
    own = settings.model_copy(update={"split": "published"})
    return replace(assemble(own, chosen, CLASSES, str(root), absent=False, tell_patients=True), drawn=drawn)


def protocol_split(labels: Sequence[str], groups: Sequence[str]) -> list[Part | None]:
    """Draw the protocol's split: n = 628 images per class or all it has, floor(n / 6) of them for the test.

    628 is the number of SCC's images. It gives the sizes of ACL's lists, training + test: 524 + 104 for each of six
    classes, 200 + 39 of DF's 239, 211 + 42 of VASC's 253. Groups come in the order of their hashes with `SPLIT_SEED`,
    first for the test; one with more images than are still wanted is passed over.

    Args:
        labels: N class names.
        groups: N keys; images of a class with the same key stay on one side.

    Returns:
        The part of each image, None if it takes no part.
    """
    parts: list[Part | None] = [None] * len(labels)
    for label in CLASSES:
        members: dict[str, list[int]] = {}
        for i, (own, group) in enumerate(zip(labels, groups, strict=True)):
            if own == label:
                members.setdefault(group, []).append(i)
        together = [members[group] for group in sorted(members, key=lambda group: fraction(SPLIT_SEED, group))]
        total = min(sum(map(len, together)), MOST_IMAGES)
        wanted: dict[Part, int] = {"test": total // TEST_PARTS, "train": total - total // TEST_PARTS}
        for part, left in wanted.items():
            for images in together:
                if parts[images[0]] is None and len(images) <= left:
                    left -= len(images)
                    for i in images:
                        parts[i] = part
    return parts


def _groups(root: Path, records: Sequence[ImageRecord]) -> list[str]:
    """Return the lesion that each image shows or, if it is unknown, the content of the file."""
    unknown = [record for record in records if record.patient is None]
    contents = file_contents(
        [record.path for record in unknown], [record.place for record in unknown], f"{root} without lesions"
    )
    known = {record.record_id: content.sha256 for record, content in zip(unknown, contents, strict=True)}
    return [record.patient or known[record.record_id] for record in records]


def _listed(root: Path, records: Mapping[str, ImageRecord]) -> list[ImageRecord]:
    """Read the images of the two lists, in lines `Data/BKL/ISIC_0032168.jpg 0`: a path and an index into `CLASSES`."""
    chosen: dict[str, ImageRecord] = {}
    for part, name in LISTS.items():
        try:
            lines = (root / name).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(
                f"{root / name} cannot be read: {error}",
                accepted=f"both lists, {' and '.join(LISTS.values())}, or neither",
                remedy=f"Fetch it from {LISTS_SOURCE}, or take the other list away too",
            ) from error
        for number, line in enumerate(lines, start=1):
            place = f"line {number} of {root / name}"
            if line.strip():
                record = _listed_record(line.strip(), place, records)
                if earlier := chosen.get(record.record_id):
                    raise DataError(
                        f"{place} names the image {record.record_id} again, after {earlier.place}",
                        remedy="Keep one of the two lines",
                    )
                chosen[record.record_id] = replace(record, split=part, place=place)
    return list(chosen.values())


def _listed_record(line: str, place: str, records: Mapping[str, ImageRecord]) -> ImageRecord:
    path, _, index = line.rpartition(" ")
    record = records.get(PurePosixPath(path).stem)
    if record is None:
        raise DataError(
            f"{place}, {line!r}, names no image of {GROUND_TRUTH}",
            accepted="lines such as 'Data/BKL/ISIC_0032168.jpg 0'",
        )
    if index != str(CLASSES.index(record.label)):
        raise DataError(
            f"{place} gives the image {record.record_id} the class {index}, and {record.place} says {record.label}",
            accepted=", ".join(f"{i} for {name}" for i, name in enumerate(CLASSES)),
        )
    return record
