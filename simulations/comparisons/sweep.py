"""Figures of a comparison whose settings form a grid: for each row a line for each value across, along the other."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from server.report.plots import Drawing, Values
from simulations.comparisons.compare import Group, Metric, Sweep
from simulations.comparisons.plots import accuracy_curves


def sweep_figures(groups: Sequence[Group], metric: Metric, sweep: Sweep) -> dict[str, Drawing]:
    """Draw the last value of the measure over the grid; return figures by name, in the order of the rows.

    Args:
        groups: the finished runs; a row without any has no figure.
        metric: the measure.
        sweep: the grid.
    """
    figures = {}
    for number, row in enumerate(dict.fromkeys(group.row for group in groups if group.results), start=1):
        name = f"sweep-{number}-{re.sub(r'[^a-z0-9_]+', '-', row.lower()).strip('-')}".rstrip("-")
        ticks, curves = sweep_curves([group for group in groups if group.row == row], metric, sweep)
        means = "; ".join(f"{line} {np.nanmean(values):.1f}" for line, values in curves.items())
        label = f"{row}: {metric.words} after the last task along {sweep.along}, in percent. Means: {means}."
        figures[name] = accuracy_curves(name, curves, f"last {metric.words}", label, along=sweep.along, ticks=ticks)
    return figures


def sweep_curves(groups: Sequence[Group], metric: Metric, sweep: Sweep) -> tuple[list[str], dict[str, Values]]:
    """Return the values along the grid, and for each value across it float64 [seeds, values along]; nan where unknown.

    Args:
        groups: of one row.
        metric: the measure.
        sweep: the grid.
    """
    ticks = list(dict.fromkeys(along for along, _ in sweep.points.values()))
    seeds = sorted({result.seed for group in groups for result in group.results})
    table: dict[str, Values] = {}
    for group in groups:
        along, across = sweep.points[group.setting]
        for result in group.results:
            line = table.setdefault(f"{sweep.across} {across}", np.full((len(seeds), len(ticks)), np.nan))
            value = result.summary[metric.last]
            line[seeds.index(result.seed), ticks.index(along)] = np.nan if value is None else value
    return ticks, table
