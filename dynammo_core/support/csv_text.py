"""CSV that people open in spreadsheets, where a cell that begins with `=`, `+`, `-` or `@` is a formula and may act.

Others choose the names of classes, files and records. So an apostrophe goes before each text that a spreadsheet could
take for a formula (https://owasp.org/www-community/attacks/CSV_Injection), and reading takes it away again. Numbers
stay as they are.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from numbers import Number

# Some spreadsheets take semicolons, tabs and line breaks for the ends of cells even inside quotes. Apostrophes that are
# there already are passed over, so that what is written can be told from what was meant.
_FORMULA = r"(?:^|(?<=[;\t\r\n])){}(?=['\s]*[=+\-@＝＋－＠])|^{}(?='*[\t\r\n])"
_BARE = re.compile(_FORMULA.format("", ""))
_QUOTED = re.compile(_FORMULA.format("'", "'"))


def as_cell(value: object) -> object:
    """Return a value's cell: numbers as they are, anything else as a text that is not a formula."""
    if value is None or isinstance(value, Number):
        return value
    return _BARE.sub("'", str(value))


def from_cell(text: str) -> str:
    """Return the text from which `as_cell` made a cell."""
    return _QUOTED.sub("", text)


def csv_lines(rows: Iterable[Iterable[object]]) -> str:
    """Return rows of values as CSV."""
    return "".join(f"{_line(row)}\n" for row in rows)


def _line(row: Iterable[object]) -> str:
    buffer = io.StringIO()
    # The end of line decides what is quoted: a lone carriage return, too.
    csv.writer(buffer, lineterminator="\r\n").writerow([as_cell(value) for value in row])
    return buffer.getvalue().removesuffix("\r\n")


def csv_table(columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> str:
    """Return rows as CSV below a header of `columns`; missing values are empty, values without a column left out."""
    return csv_lines([columns, *([row.get(column) for column in columns] for row in rows)])


def read_csv_table(text: str) -> list[dict[str, str]]:
    """Read the rows of a `csv_table`; cells may hold line breaks."""
    table = csv.DictReader(io.StringIO(text, newline=""))
    # A row that is cut off lacks cells.
    return [{name: from_cell(cell) if isinstance(cell, str) else cell for name, cell in row.items()} for row in table]
