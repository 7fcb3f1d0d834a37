"""The figures that compare methods, in colours that the colour-blind can tell apart (Okabe and Ito, 2008)."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence

import numpy as np

from server.report.plots import RULE, Drawing, Values, drawing, shortened
from simulations.comparisons.compare import Group, Metric, Sweep

# Without their yellow, which is too pale for a line on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)))
LEGEND_COLUMNS = 2  # below the axes, so that a figure fits on a telephone with its legend
LONGEST_LABEL = 36  # characters, two of which fit beside each other
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def looks(place: int) -> tuple[str, str]:
    """Return the colour and the marker of a row by its place; of 49 rows no two look the same."""
    return COLOURS[place % len(COLOURS)], MARKERS[(place + place // len(COLOURS)) % len(MARKERS)]


def accuracy_curves(
    name: str,
    curves: Mapping[str, Values],
    words: str,
    label: str,
    *,
    along: str = "after task",
    ticks: Sequence[str] = (),
) -> Drawing:
    """Draw a line for each row, its mean over seeds, in a band of one standard deviation (figure 2 of the paper).

    Args:
        name: keeps the ids of figures on a page apart.
        curves: by row, float64 [seeds, T] in percent after each task; nan where unknown.
        words: the measure.
        label: read aloud.
        along: what stands below.
        ticks: what each of the T values is of; by default they are numbered.
    """
    with drawing(name, label, 6.4, 3.6 + 0.22 * -(-len(curves) // LEGEND_COLUMNS)) as drawn:
        axes = drawn.axes
        longest = 1
        for place, (row, values) in enumerate(curves.items()):
            middle, spread = mean_and_deviation(values)
            after = np.arange(1, len(middle) + 1)
            colour, marker = looks(place)
            axes.fill_between(after, middle - spread, middle + spread, color=colour, alpha=0.14, linewidth=0)
            axes.plot(
                after,
                middle,
                color=colour,
                linestyle=DASHES[place // len(COLOURS) % len(DASHES)],
                marker=marker,
                markersize=5,
                linewidth=1.8,
                label=shortened(row, LONGEST_LABEL),
            )
            longest = max(longest, len(middle))
        axes.set(xlabel=along, ylabel=f"{words}, %", xlim=(0.8, longest + 0.2))
        axes.set_ylim(0, 101)
        if ticks:
            axes.set_xticks(range(1, len(ticks) + 1), ticks)
        else:
            axes.set_xticks(np.unique(np.linspace(1, longest, min(longest, 10)).round().astype(int)))
        axes.grid(axis="y", color=RULE, linewidth=0.6)
        drawn.figure.legend(loc="outside lower left", ncols=LEGEND_COLUMNS, fontsize=8)
    return drawn


def mean_and_deviation(values: Values) -> tuple[Values, Values]:
    """Return mean and sample standard deviation over seeds, two float64 [T]; a single seed has the deviation 0."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of tasks that no seed has a value for, which stay nan
        middle = np.nanmean(values, axis=0)
        spread = np.nanstd(values, axis=0, ddof=1) if len(values) > 1 else np.zeros(values.shape[1])
    return middle, np.nan_to_num(spread)


def sweep_figures(groups: Sequence[Group], metric: Metric, sweep: Sweep) -> dict[str, Drawing]:
    """Draw the last value of the measure over a grid of settings; return figures by name, in the order of the rows.

    Each row has a figure with a line for each value across the grid, along the other.

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
