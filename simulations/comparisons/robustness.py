"""What lying sites do to each aggregator: clean runs, runs under attack, and how far they lie apart."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from client.app import app as client_app
from dynammo_core.aggregation import AGGREGATORS
from dynammo_core.configuration.config import Scalar, load_config
from dynammo_core.support.csv_text import csv_table
from dynammo_core.support.errors import ConfigError, DynammoError, unknown_name
from dynammo_core.support.files import write_atomically
from server.run.run import run_experiment
from simulations.comparisons.compare import METRICS, Cell, OnEvent, Outcome
from simulations.comparisons.liars import ATTACKS, LyingGrid
from simulations.engines.local_grid import LocalGrid

CLEAN = "clean"


@dataclass(frozen=True)
class Row:
    """A run in the table. Accuracies are in percent, differences in points; none of a run that could not go on.

    Attributes:
        aggregator: its name.
        attack: what the liars did, or "clean".
        average: average incremental accuracy.
        last: accuracy after the last task.
        average_from_own: difference from the clean run of the same aggregator; `last_from_own` alike.
        average_from_mean: difference from the clean run of the mean; `last_from_mean` alike.
        error: what stopped the run, empty where it completed.
    """

    aggregator: str
    attack: str
    average: float | None
    last: float | None
    average_from_own: float | None
    last_from_own: float | None
    average_from_mean: float | None
    last_from_mean: float | None
    error: str


def plan(
    config: Path, overrides: Mapping[str, Scalar], *, aggregators: Sequence[str], attacks: Sequence[str], liars: int
) -> list[Cell]:
    """Every run of the table: each aggregator clean and under each attack, the mean first, all with one seed.

    Raises:
        ConfigError: an unknown name, a configuration that is wrong, or more liars than an aggregator withstands.
    """
    for kind, given, known in (("aggregator", aggregators, AGGREGATORS), ("attack", attacks, ATTACKS)):
        for name in given:
            if name not in known:
                raise ConfigError(unknown_name(kind, name, known), accepted=", ".join(known))
    cells = []
    for aggregator in dict.fromkeys(["mean", *aggregators]):
        own = {**overrides, "federation.aggregator": aggregator, "federation.liars": liars}
        read = load_config(config, own)
        if read.federation.sites <= liars:
            raise ConfigError(f"--liars {liars} leaves nobody honest among {read.federation.sites} sites")
        if attacks and read.federation.compression != "none":
            raise ConfigError("the attacks are on tensors as they are", remedy="Leave federation.compression at none")
        cells += [Cell(attack, aggregator, read.seed, read) for attack in (CLEAN, *attacks)]
    return cells


def missing(cells: Sequence[Cell], runs: Path) -> dict[str, Cell]:
    """The runs that have not finished yet, by label."""
    return {cell.label: cell for cell in cells if cell.summary(runs / cell.setting) is None}


def run_cells(cells: Mapping[str, Cell], runs: Path, on_event: OnEvent) -> Iterator[Outcome]:
    """Run cells one after the other in this process; a run that breaks under its attack does not stop the others."""
    for label, cell in cells.items():
        federation = cell.config.federation
        grid = (
            LyingGrid(client_app, federation.sites, liars=federation.liars, attack=ATTACKS[cell.setting])
            if cell.setting in ATTACKS
            else LocalGrid(client_app, federation.sites, run_config={})
        )
        try:
            run_experiment(
                grid,
                cell.config,
                runs=runs / cell.setting,
                resume=None,
                listeners=[partial(on_event, label)],
            )
        except DynammoError as error:
            if cell.setting == CLEAN:
                raise
            yield Outcome(label, "", str(error))
        else:
            yield Outcome(label, "", "")


def rows(cells: Sequence[Cell], runs: Path, errors: Mapping[str, str]) -> list[Row]:
    """The table of the finished runs, in the order of the cells; `errors` by label says why others are none."""
    metric = METRICS["accuracy"]
    found = {(cell.row, cell.setting): cell.summary(runs / cell.setting) for cell in cells}

    def figures(aggregator: str, attack: str) -> tuple[float | None, float | None]:
        summary: Mapping[str, Any] = found[aggregator, attack] or {}
        return summary.get(metric.average), summary.get(metric.last)

    table = []
    for cell in cells:
        own, clean, mean = (figures(*key) for key in ((cell.row, cell.setting), (cell.row, CLEAN), ("mean", CLEAN)))
        average, last = own
        table.append(
            Row(
                cell.row,
                cell.setting,
                average,
                last,
                _difference(average, clean[0]),
                _difference(last, clean[1]),
                _difference(average, mean[0]),
                _difference(last, mean[1]),
                errors.get(cell.label, ""),
            )
        )
    return table


def write_rows(table: Sequence[Row], folder: Path, facts: Mapping[str, object]) -> Path:
    """Write `robustness.json`, with the facts beside the rows, and `robustness.csv`; returns the former's path."""
    rows = csv_table([field.name for field in fields(Row)], map(asdict, table))
    write_atomically(folder / "robustness.csv", rows.encode())
    file = folder / "robustness.json"
    write_atomically(file, (json.dumps({**facts, "rows": [asdict(row) for row in table]}, indent=2) + "\n").encode())
    return file


def printed(table: Sequence[Row], title: str) -> Table:
    """The rows for people: "average / last", and the differences alike."""
    drawn = Table("aggregator", "attack", "average / last", "from its own clean run", "from the mean's", box=SIMPLE)
    drawn.title = escape(title)
    for row in table:
        drawn.add_row(
            "" if row.attack != CLEAN else row.aggregator,
            row.attack,
            "broke down" if row.error else _pair(row.average, row.last, "{:.1f}"),
            "" if row.attack == CLEAN else _pair(row.average_from_own, row.last_from_own, "{:+.1f}"),
            _pair(row.average_from_mean, row.last_from_mean, "{:+.1f}"),
        )
    return drawn


def _pair(average: float | None, last: float | None, shape: str) -> str:
    return " / ".join("-" if value is None else shape.format(value) for value in (average, last))


def _difference(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else round(one - other, 4)
