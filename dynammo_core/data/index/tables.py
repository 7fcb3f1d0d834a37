"""CSV tables that people made: rows with the numbers that a spreadsheet shows, and other formats recognised by name."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dynammo_core.support.errors import DataError

BYTE_ORDER_MARKS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
OTHER_FILES = {
    b"PK\x03\x04": "an Excel workbook, or another archive",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook",
    b"\x1f\x8b": "compressed",
}
SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "vertical bars"}
REMEDY = (
    "Save it again as CSV in UTF-8 with commas: in LibreOffice by «Save as» with «Edit filter settings», in Excel as "
    "«CSV UTF-8», with a comma as the list separator of the system"
)


@dataclass(frozen=True)
class Row:
    """What a table says in one row, and `place` ("row 7 of table.csv") for messages; the header is row 1."""

    place: str
    values: Mapping[str, str]


@dataclass(frozen=True)
class Table:
    """A header and the rows below it; blank rows count, as in a spreadsheet, and are left out."""

    columns: tuple[str, ...]
    rows: tuple[Row, ...]


def read_csv(file: Path, accepted: str) -> Table:
    """Read a CSV file in UTF-8, with or without a byte order mark, whose values are separated by commas.

    Raises:
        DataError: it cannot be read, has another encoding or separator, a column twice, or a row with more or fewer
            values than the header; `accepted` says what the file should be.
    """
    text = _decoded(file, accepted)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    columns: tuple[str, ...] | None = None
    rows = []
    try:
        for number, values in enumerate(reader, start=1):
            if not any(value.strip() for value in values):
                continue
            if columns is None:
                columns = tuple(value.strip() for value in values)
                _check_header(file, columns, accepted)
                continue
            place = f"row {number} of {file}"
            if len(values) != len(columns):
                raise DataError(
                    f"{place} has not as many values as the header: {len(values)}, not {len(columns)}",
                    accepted=f"{len(columns)} values in each row; one with a comma in it stands between quotes",
                )
            rows.append(Row(place, dict(zip(columns, values, strict=True))))
    except csv.Error as error:
        raise DataError(f"{file} cannot be read: line {reader.line_num}: {error}", accepted=accepted) from error
    return Table(columns or (), tuple(rows))


def _decoded(file: Path, accepted: str) -> str:
    try:
        content = file.read_bytes()
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error}", accepted=accepted) from error
    for mark, kind in OTHER_FILES.items():
        if content.startswith(mark):
            raise DataError(f"{file} cannot be read: it is {kind}", accepted=accepted, remedy=REMEDY)
    encoding = BYTE_ORDER_MARKS.get(content[:2])
    if encoding is None and content[:200].count(0) > len(content[:200]) // 4:
        encoding = "UTF-16 without a byte order mark"
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DataError(
            f"{file} cannot be read: it is not UTF-8 (line {line}) but {encoding or 'perhaps Windows-1252 or Latin-1'}",
            accepted=accepted,
            remedy=REMEDY,
        ) from error
    if encoding:
        raise DataError(f"{file} cannot be read: it is {encoding}", accepted=accepted, remedy=REMEDY)
    return text


def _check_header(file: Path, columns: tuple[str, ...], accepted: str) -> None:
    if len(columns) == 1:
        for separator, name in SEPARATORS.items():
            if separator in columns[0]:
                raise DataError(
                    f"the values of {file} are separated by {name}: its header is {columns[0]!r}",
                    accepted=accepted,
                    remedy=REMEDY,
                )
    for column in columns:
        if columns.count(column) > 1:
            raise DataError(f"{file} has the column {column!r} twice", accepted=accepted)
