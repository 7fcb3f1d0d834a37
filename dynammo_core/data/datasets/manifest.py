"""A CSV manifest of images: columns path and label, and optionally split, site, record_id and patient."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, cast

from dynammo_core.configuration.settings import DataSettings
from dynammo_core.data.index.class_folders import PARTS
from dynammo_core.data.index.folders import ARCHIVES, data_root, missing
from dynammo_core.data.index.labels import folded, is_missing, refuse_unclear_labels
from dynammo_core.data.index.records import ImageRecord, assemble
from dynammo_core.data.index.tables import Row, Table, read_csv
from dynammo_core.data.samples import Dataset
from dynammo_core.support.csv_text import from_cell
from dynammo_core.support.errors import DataError

FILE_NAME = "manifest.csv"
REQUIRED = ("path", "label")
OPTIONAL = ("split", "site", "record_id", "patient")
KNOWN = (*REQUIRED, *OPTIONAL)
COLUMNS = f"the columns {', '.join(REQUIRED)} and, optionally, {', '.join(OPTIONAL)}, separated by commas"
ACCEPTED = f"UTF-8 CSV with {COLUMNS}"
PATIENT = re.compile(r"patients?(id|no|nr|num|number|code|key|uid|name|hash|identifier|pseudonym)")
NEAR = 0.85
"""Likeness from which on an unknown column is taken for a misspelt one: `patient_id` is, `patient_age` is not."""


def load_manifest(settings: DataSettings) -> Dataset:
    """Load the images that the manifest `data.root` (or `data.root`/manifest.csv) names, by paths relative to it.

    Labels are the class names, sorted, or `data.classes`. Without a split column images are split 80/20, by patient if
    there is a column of that name, else by content. Columns of other names are not read, and a note names them. An
    apostrophe that keeps spreadsheets from taking a label for a formula (`'=x`) is not part of it. Rows count from 1,
    the header.

    Raises:
        DataError: the manifest is missing, a column is missing or looks like a misspelt one, a row has a wrong or
            missing value, or `assemble` refuses the images; the message names the row.
    """
    file = _file(settings)
    records, notes = _records(settings, file)
    names = settings.classes or tuple(sorted({record.label for record in records}))
    return assemble(settings, records, names, str(file), absent=settings.classes is not None, notes=notes)


def manifest_labels(settings: DataSettings) -> tuple[str, ...]:
    """Return the labels that the manifest names, sorted.

    Raises:
        DataError: as `load_manifest`, or a label is unclear.
    """
    file = _file(settings)
    counts = Counter(record.label for record in _records(settings, file)[0])
    refuse_unclear_labels(counts, str(file), settings.classes)
    return tuple(sorted(counts))


def _file(settings: DataSettings) -> Path:
    root = data_root(settings)
    return root / FILE_NAME if root.is_dir() else root


def _records(settings: DataSettings, file: Path) -> tuple[list[ImageRecord], list[str]]:
    if not file.is_file() or file.suffix.lower() in ARCHIVES:
        raise missing(settings, file, "a manifest", f"a CSV file, or a folder with {FILE_NAME}, with {COLUMNS}")
    table = read_csv(file, ACCEPTED)
    _check_columns(file, table.columns)
    if not table.rows:
        raise DataError(
            f"the manifest {file} names no images", accepted=f"a header and one row for each image, with {COLUMNS}"
        )
    unknown = [column for column in table.columns if column not in KNOWN]
    if "split" not in table.columns:
        _refuse_unread_split(file, table, unknown)
    names = ", ".join(column or "one without a name" for column in unknown)
    notes = [f"columns of {file} that are not read: {names}"] if unknown else []
    return [_record(file, row) for row in table.rows], notes


def _check_columns(file: Path, columns: tuple[str, ...]) -> None:
    for column in columns:
        if column not in KNOWN and (meant := _misspelt(column, [name for name in KNOWN if name not in columns])):
            raise DataError(
                f"the manifest {file} has a column {column!r} (did you mean {meant!r}?)",
                accepted=COLUMNS,
                remedy=f"Rename it to {meant!r}; or, if it means something else, to a name that is less alike",
            )
    for column in REQUIRED:
        if column not in columns:
            raise DataError(f"the manifest {file} has no column {column!r}", accepted=COLUMNS)


def _refuse_unread_split(file: Path, table: Table, columns: Iterable[str]) -> None:
    """Refuse a column that says which part each image belongs to, and is not called split: another would be drawn."""
    for column in columns:
        parts = {PARTS.get(row.values[column].strip().lower()) for row in table.rows}
        if {"train", "test"} <= parts and None not in parts:
            raise DataError(
                f"the column {column!r} of the manifest {file} says what is for training and what for the test, and "
                "only one that is called split is read",
                accepted=COLUMNS,
                remedy="Rename it to split, with train or test in each row; or take it out if a split is to be drawn",
            )


def _misspelt(column: str, names: Iterable[str]) -> str | None:
    """Return the name that an unknown column looks like, if any.

    It has most of its letters, or all in another order, or says the same, as `Patient No.` does.
    """
    plain = {folded(name): name for name in names}
    own = folded(column)
    if "patient" in plain and PATIENT.fullmatch(re.sub(r"[\W_]", "", own)):
        return "patient"
    swapped = next((name for key, name in plain.items() if sorted(key) == sorted(own)), None)
    close = difflib.get_close_matches(own, list(plain), n=1, cutoff=NEAR)
    return swapped or (plain[close[0]] if close else None)


def _record(file: Path, row: Row) -> ImageRecord:
    values = {name: row.values[name].strip() for name in KNOWN if name in row.values}
    for name, value in values.items():
        if is_missing(value) and (name != "label" or not value):
            raise DataError(
                f"{row.place} has no value for {name!r}" + (f": {value!r}" if value else ""),
                remedy="Fill it in, or drop the column in every row",
            )
    split = values.get("split")
    if split not in (None, "train", "test"):
        raise DataError(f"{row.place} has the split {split!r}", accepted="train, test")
    path, slashed = file.parent / values["path"], file.parent / values["path"].replace("\\", "/")
    if path != slashed and slashed.exists() and not path.exists():
        raise DataError(
            f"{row.place} has the path {values['path']!r}",
            accepted=values["path"].replace("\\", "/"),
            remedy="Write / in place of \\, which only Windows takes for the same",
        )
    return ImageRecord(
        path=path,
        label=from_cell(values["label"]),
        record_id=values.get("record_id", values["path"]),
        place=row.place,
        split=cast("Literal['train', 'test'] | None", split),
        site=values.get("site"),
        patient=values.get("patient"),
    )
