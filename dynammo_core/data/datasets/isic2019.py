"""ISIC 2019's training set as its publisher lays it out: a folder of JPEG images, and tables of what they show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dynammo_core.configuration.settings import DataSettings
from dynammo_core.data.index.folders import missing
from dynammo_core.data.index.records import ImageRecord
from dynammo_core.data.index.tables import Row, read_csv
from dynammo_core.support.errors import DataError

CLASSES = ("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC")
"""Melanoma, melanocytic nevus, basal cell carcinoma, actinic keratosis, benign keratosis, dermatofibroma, vascular
lesion, squamous cell carcinoma: in the order of the published columns, in which FLamby numbers them too."""

IMAGES = "ISIC_2019_Training_Input"
GROUND_TRUTH = "ISIC_2019_Training_GroundTruth.csv"
METADATA = "ISIC_2019_Training_Metadata.csv"
SOURCE = "https://challenge.isic-archive.com/data/#2019"


def read_table(file: Path, columns: Sequence[str]) -> dict[str, Row]:
    """Read the rows of a CSV file, in order, by the name in its column `image`; columns not asked for are passed over.

    Raises:
        DataError: the file is not a table, lacks one of `columns` or a value, or names an image twice.
    """
    needed = ("image", *columns)
    table = read_csv(file, f"UTF-8 CSV with the columns {', '.join(needed)}")
    _check_header(file, table.columns, needed)
    rows: dict[str, Row] = {}
    for row in table.rows:
        if earlier := rows.get(row.values["image"]):
            raise DataError(
                f"{row.place} names the image {row.values['image']} again, after {earlier.place}",
                remedy="Keep one of the two rows",
            )
        rows[row.values["image"]] = row
    return rows


def read_ground_truth(settings: DataSettings, root: Path, layout: str) -> list[ImageRecord]:
    """Read every image of ROOT/ISIC_2019_Training_GroundTruth.csv with its class, sorted by name, without a split.

    Raises:
        DataError: the folder of images or the table is missing (`layout` says what should be there), or a row names
            no class or several.
    """
    file, images = root / GROUND_TRUTH, root / IMAGES
    if not file.is_file():
        raise missing(settings, file, "the table of diagnoses", layout)
    if not images.is_dir():
        raise missing(settings, images, "the folder of images", layout)
    rows = read_table(file, CLASSES)
    return [ImageRecord(images / f"{name}.jpg", _diagnosis(row), name, row.place) for name, row in sorted(rows.items())]


def read_lesions(root: Path) -> dict[str, str]:
    """Read the lesion of each image, by name, from ROOT/ISIC_2019_Training_Metadata.csv, if known.

    Without the file no lesion is known.

    Raises:
        DataError: the file is damaged or lacks the columns image and lesion_id.
    """
    file = root / METADATA
    rows = read_table(file, ("lesion_id",)) if file.is_file() else {}
    return {image: lesion for image, row in rows.items() if (lesion := row.values["lesion_id"])}


def with_lesions(root: Path, records: Sequence[ImageRecord]) -> list[ImageRecord]:
    """Return records with the lesion that each shows as their patient, if it is known: true patients are not published.

    Raises:
        DataError: as `read_lesions`.
    """
    lesions = read_lesions(root)
    return [replace(record, patient=lesions.get(record.record_id)) for record in records]


def _check_header(file: Path, found: Sequence[str], needed: Sequence[str]) -> None:
    if lacking := [name for name in needed if name not in found]:
        raise DataError(
            f"{file} has no column {', '.join(map(repr, lacking))}; it has {', '.join(found) or 'none at all'}",
            accepted=f"the columns {', '.join(needed)} and any others, separated by commas",
            remedy="Take the file as it was published",
        )


def _diagnosis(row: Row) -> str:
    try:
        shares = [float(row.values[name]) for name in CLASSES]
    except ValueError:
        shares = []
    if sorted(shares) != [*[0.0] * (len(CLASSES) - 1), 1.0]:
        raise DataError(
            f"{row.place} gives the image {row.values['image']} none of the eight classes, or not one alone",
            accepted=f"1.0 in one of the columns {', '.join(CLASSES)}, 0.0 in the others",
            remedy="Correct the row, or take it out",
        )
    return CLASSES[shares.index(1.0)]
