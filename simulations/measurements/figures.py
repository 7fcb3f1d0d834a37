"""The table of a measurement that a grid of runs makes: on the terminal, and as JSON and CSV."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from pathlib import Path

from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from dynammo_core.code_identity import code_hash
from dynammo_core.support.csv_text import csv_table
from dynammo_core.support.files import write_atomically
from simulations.comparisons.compare import Cell, Json

Columns = Mapping[str, Callable[[Json], str]]
"""What each column of a printed table shows of a row, by its heading."""

MOST_WIDE = 6
"""Columns that stand well apart in a terminal; more of them move together."""


def printed(rows: Sequence[Json], columns: Columns, title: str, *, part: str = "") -> Table:
    """Draw rows for people; `part` names the key by which they are divided under headings of their own."""
    padding = 0 if len(columns) > MOST_WIDE else (0, 1)
    drawn = Table(*columns, box=SIMPLE, padding=padding, show_edge=False, title=escape(title), title_justify="left")
    for heading, own in groupby(rows, key=lambda row: str(row[part]) if part else ""):
        if heading:
            drawn.add_section()
            drawn.add_row(f"[bold]{part}: {escape(heading)}[/]")
        for row in own:
            drawn.add_row(*(escape(show(row)) for show in columns.values()))
    return drawn


def write_rows(
    name: str, rows: Sequence[Json], cells: Sequence[Cell], folder: Path, facts: Mapping[str, object]
) -> Path:
    """Write `<name>.csv`, and `<name>.json` with facts beside the rows; return the path of the latter.

    The facts of all are the configuration of the first cell and the hash of the code.
    """
    write_atomically(folder / f"{name}.csv", csv_table(list(rows[0]), rows).encode())
    config = cells[0].config
    shared = {"config": config.model_dump(mode="json"), "code_hash": code_hash(config)}
    file = folder / f"{name}.json"
    write_atomically(file, (json.dumps({**facts, **shared, "rows": list(rows)}, indent=2) + "\n").encode())
    return file


def decimals(value: float | None, digits: int = 1) -> str:
    """Format a figure for people; an unknown one is empty."""
    return "" if value is None else f"{value:.{digits}f}"
