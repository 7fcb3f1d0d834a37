"""What the networks of a comparison cost, beside how good they are: one table, and figures of accuracy against cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from types import MappingProxyType

from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from dynammo_core.support.csv_text import csv_table
from dynammo_core.support.files import write_atomically
from server.report.plots import RULE, Drawing, drawing, shortened
from simulations.comparisons.compare import Group, Metric
from simulations.comparisons.own_heads import own_heads, own_heads_table
from simulations.comparisons.plots import LEGEND_COLUMNS, looks
from simulations.comparisons.table import Spread, table

MEASURED: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "macs": ("macs_per_image",),
        "parameters": ("deployed_parameters",),
        "bytes_up": ("bytes_up",),
        "bytes_down": ("bytes_down",),
        "seconds": ("seconds",),
        "bytes": ("bytes_up", "bytes_down"),
    }
)
"""The keys of a run's summary whose sum is a cost."""
AXES: Mapping[str, tuple[float, str]] = MappingProxyType(
    {"macs": (1e9, "GMAC of one prediction"), "bytes": (1e6, "MB over the network, all sites and rounds")}
)
"""What figures have from left to right: the unit, and the words below."""


@dataclass(frozen=True)
class Costs:
    """What a row cost under a setting, means over its seeds, as its runs measured it.

    Attributes:
        last: the measure after the last task, in percent.
        macs: multiply-accumulates of one prediction by the deployed model.
        parameters: of the deployed model.
        bytes_up: of all sites to the server, in all rounds.
        bytes_down: of the server to all sites.
        bytes: both ways.
        seconds: of all steps by the clock, other runs on the same machine included.
    """

    setting: str
    row: str
    last: Spread
    macs: float
    parameters: float
    bytes_up: float
    bytes_down: float
    bytes: float
    seconds: float


def costs(groups: Sequence[Group], metric: Metric) -> list[Costs]:
    """Return what each row with a finished run cost, in the order of the groups."""
    return [
        Costs(
            group.setting,
            group.row,
            Spread.of(result.summary.get(metric.last) for result in group.results),
            **{
                name: mean(sum(result.summary[key] for key in keys) for result in group.results)
                for name, keys in MEASURED.items()
            },
        )
        for group in groups
        if group.results
    ]


def tables(groups: Sequence[Group], metric: Metric, title: str) -> list[Table]:
    """Return what a terminal of 80 columns shows: how good each row is, what it cost, and heads of sites' own."""
    found, own = costs(groups, metric), own_heads(groups)
    shown = [table(groups, metric, title), *([_costs_table(found, metric)] if found else [])]
    return [*shown, own_heads_table(own)] if own else shown


def _costs_table(every: Sequence[Costs], metric: Metric) -> Table:
    headings = (f"last {metric.words}", "GMAC", "M params", "MB up", "MB down", "seconds")
    result = Table("row", *headings, box=SIMPLE, padding=0, show_edge=False)
    for one in every:
        figures = (one.macs / 1e9, one.parameters / 1e6, one.bytes_up / 1e6, one.bytes_down / 1e6, one.seconds)
        name = ": ".join(filter(None, (one.setting, one.row)))
        result.add_row(escape(name), str(one.last), *map(_short, figures))
    return result


def _short(value: float) -> str:
    """Return three digits of a number, all before the point."""
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def write_costs(every: Sequence[Costs], metric: Metric, file: Path) -> None:
    """Write the rows as CSV, whole or not at all."""
    columns = ("setting", "row", "metric", "last_mean", "last_deviation", *MEASURED)
    rows = [
        {**vars(one), "metric": metric.words, "last_mean": one.last.mean, "last_deviation": one.last.deviation}
        for one in every
    ]
    write_atomically(file, csv_table(columns, rows).encode())


def cost_figures(every: Sequence[Costs], metric: Metric, name: str) -> Iterator[tuple[str, Drawing]]:
    """Draw the last value of the measure against each cost; yield the figures with their names.

    Args:
        every: of one setting; fewer than two rows with a value have no figure.
        metric: the measure.
        name: ends the names.
    """
    known = [one for one in every if one.last.mean is not None]
    for cost in AXES if len(known) > 1 else ():
        yield f"{cost}-{name}", _scatter(f"{cost}-{name}", known, metric, cost)


def _scatter(name: str, every: Sequence[Costs], metric: Metric, cost: str) -> Drawing:
    """Draw a point for each row, with a bar of one standard deviation over seeds; the cheapest and best is top left."""
    unit, words = AXES[cost]
    values = [getattr(one, cost) / unit for one in every]
    told = "; ".join(f"{one.row} {one.last} at {value:.3g}" for one, value in zip(every, values, strict=True))
    label = f"Last {metric.words} in percent against {words}: {told}."
    with drawing(name, label, 4.9, 3.2 + 0.22 * -(-len(every) // LEGEND_COLUMNS)) as drawn:
        axes = drawn.axes
        for place, (one, value) in enumerate(zip(every, values, strict=True)):
            colour, marker = looks(place)
            point, spread = (value, one.last.mean), one.last.deviation
            axes.errorbar(
                *point, yerr=spread, fmt=marker, color=colour, markersize=7, capsize=3, label=shortened(one.row)
            )
        if min(values) > 0 and max(values) > 10 * min(values):
            axes.set_xscale("log")
        axes.margins(x=0.1, y=0.15)
        axes.set(xlabel=words, ylabel=f"last {metric.words}, %")
        axes.grid(color=RULE, linewidth=0.6)
        drawn.figure.legend(loc="outside lower left", ncols=LEGEND_COLUMNS, fontsize=8)
    return drawn
