"""A CSV manifest of images: columns path and label, optionally split, site and record_id; paths are relative to it."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, cast

from dynammo_core.configuration.settings import DataSettings
from dynammo_core.data.index.folders import ARCHIVES, data_root, missing
from dynammo_core.data.index.records import ImageRecord, assemble
from dynammo_core.data.samples import Dataset
from dynammo_core.support.csv_text import from_cell
from dynammo_core.support.errors import DataError, nearest_match

FILE_NAME = "manifest.csv"
REQUIRED = ("path", "label")
OPTIONAL = ("split", "site", "record_id")
COLUMNS = f"the columns {', '.join(REQUIRED)} and, optionally, {', '.join(OPTIONAL)}, separated by commas"

# A row as csv.DictReader returns it: surplus values are under None, missing values are None
Row = Mapping[str | None, str | None]


def load_manifest(settings: DataSettings) -> Dataset:
    """Load the images that the manifest `data.root` (or `data.root`/manifest.csv) names.

    Labels are the class names, sorted, or `data.classes`. Without a split column images are split 80/20 within each
    class, image by image: give the column if a patient has several images. An apostrophe that keeps spreadsheets from
    taking a label for a formula (`'=x`) is not part of it. Rows count from 1, the header.

    Raises:
        DataError: the manifest is missing, columns are unknown or missing, a row has a wrong or repeated value, or
            `assemble` refuses the images; the message names the row.
    """
    file = _file(settings)
    records = _records(settings, file)
    names = settings.classes or tuple(sorted({record.label for record in records}))
    return assemble(records, names, str(file), absent=settings.classes is not None)


def manifest_labels(settings: DataSettings) -> tuple[str, ...]:
    """Return the labels that the manifest names, sorted.

    Raises:
        DataError: as `load_manifest`.
    """
    return tuple(sorted({record.label for record in _records(settings, _file(settings))}))


def _file(settings: DataSettings) -> Path:
    root = data_root(settings)
    return root / FILE_NAME if root.is_dir() else root


def _records(settings: DataSettings, file: Path) -> list[ImageRecord]:
    if not file.is_file() or file.suffix.lower() in ARCHIVES:
        raise missing(settings, file, "a manifest", f"a CSV file, or a folder with {FILE_NAME}, with {COLUMNS}")
    rows = _rows(file)
    if not rows:
        raise DataError(
            f"the manifest {file} names no images", accepted=f"a header and one row an image, with {COLUMNS}"
        )
    records = []
    rows_of_paths: dict[Path, int] = {}
    for number, row in enumerate(rows, start=2):
        record = _record(file, number, row)
        if (earlier := rows_of_paths.setdefault(record.path, number)) != number:
            raise DataError(
                f"row {number} of {file} names the image {record.path} again, after row {earlier}",
                remedy="Keep one of the two rows",
            )
        records.append(record)
    return records


def _rows(file: Path) -> list[Row]:
    try:
        with file.open(encoding="utf-8-sig", newline="") as text:
            reader = csv.DictReader(text, strict=True)
            _check_header(file, list(reader.fieldnames or ()))
            return [cast(Row, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"the manifest {file} cannot be read: {error}", accepted=f"UTF-8 CSV with {COLUMNS}") from error


def _check_header(file: Path, columns: list[str]) -> None:
    known = (*REQUIRED, *OPTIONAL)
    for column in columns:
        if column not in known:
            raise DataError(
                f"the manifest {file} has a column {column!r}{nearest_match(column, known)}",
                accepted=COLUMNS,
                remedy="Rename the column, or take it out: a manifest holds no more about a patient than is needed",
            )
    for column in columns:
        if columns.count(column) > 1:
            raise DataError(f"the manifest {file} has the column {column!r} twice", accepted=COLUMNS)
    for column in REQUIRED:
        if column not in columns:
            raise DataError(f"the manifest {file} has no column {column!r}", accepted=COLUMNS)


def _record(file: Path, number: int, row: Row) -> ImageRecord:
    place = f"row {number} of {file}"
    if None in row or None in row.values():
        columns = [name for name in row if name is not None]
        raise DataError(f"{place} has not as many values as the header", accepted=f"{len(columns)} values a row")
    values = {cast(str, name): cast(str, value).strip() for name, value in row.items()}
    for name, value in values.items():
        if not value:
            raise DataError(f"{place} has no value for {name!r}", remedy="Fill it in, or drop the column in every row")
    split = values.get("split")
    if split not in (None, "train", "test"):
        raise DataError(f"{place} has the split {split!r}", accepted="train, test")
    return ImageRecord(
        path=file.parent / values["path"],
        label=from_cell(values["label"]),
        record_id=values.get("record_id", values["path"]),
        place=place,
        split=cast("Literal['train', 'test'] | None", split),
        site=values.get("site"),
    )
