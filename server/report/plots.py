"""The figures of the report: each function turns numbers into one inline SVG that scales, prints and speaks.

Figures are vector graphics with real text, the same bytes for the same numbers, and touch no global plotting state.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.colors import LinearSegmentedColormap, ListedColormap
from matplotlib.figure import Figure
from numpy.typing import NDArray

Values = NDArray[np.float64]

INK, MUTED, RULE = "#1c2733", "#5a6773", "#d5dbe1"
BLUE, PALE, RED, GREY = "#1f6394", "#a9c9df", "#b3402a", "#c3cad1"
SHADES = LinearSegmentedColormap.from_list("shades", ["#f7fafc", "#a9c9df", "#3f83b1", "#0d3c61"])
STYLE = {
    "svg.fonttype": "none",  # text stays text: it can be read aloud, searched, and needs no font of ours
    "text.parse_math": False,  # a class name may hold a dollar sign
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": RULE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}
PIXELS_PER_INCH = 200  # of a PNG
MOST_NUMBERED = 20  # cells per side up to which a matrix shows its numbers


class Drawing:
    """A figure in the making, with one pair of axes; its SVG is there once the block is left."""

    def __init__(self, figure: Any, axes: Any) -> None:
        self.figure, self.axes = figure, axes
        self.svg = ""

    def png(self) -> bytes:
        """Return the finished figure as PNG, for places that cannot show vector graphics."""
        buffer = io.BytesIO()
        self.figure.savefig(buffer, format="png", dpi=PIXELS_PER_INCH)
        return buffer.getvalue()


@contextmanager
def drawing(name: str, label: str, width: float, height: float) -> Iterator[Drawing]:
    """Yield axes of `width` x `height` inches; `name` keeps figures' ids on a page apart, `label` is read aloud."""
    with rc_context({**STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(width, height))
        drawn = Drawing(figure, figure.add_subplot())
        yield drawn
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    drawn.svg = _inline(buffer.getvalue(), label, width)


def _inline(svg: str, label: str, width: float) -> str:
    """Return the bare <svg> element: no prolog or metadata, only ids that are used, and a size that can shrink."""
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    used = set(re.findall(r"#([\w-]+)", svg))
    svg = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", svg)
    box = re.search(r'viewBox="[^"]*"', svg)
    size = f"width:{width * 96:.0f}px;min-width:{width * 56:.0f}px"
    head = f'<svg {box[0] if box else ""} role="img" aria-label="{html.escape(label)}" style="{size}" '
    head += 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">'
    return head + svg[svg.index(">") + 1 :].strip()


def shortened(name: str, most: int = 24) -> str:
    """Return a name that fits into a figure, without its middle if it is long: names often differ at their ends."""
    return name if len(name) <= most else f"{name[: most // 2]}…{name[-(most - most // 2 - 1) :]}"


def accuracy_curve(
    curve: Values, lowest: Values, highest: Values, chance: Values, tasks: int, measure: str, label: str
) -> str:
    """Return a plot of a measure over all classes so far, with the range over sites and that of chance.

    All are [T] percent, nan if unknown; `measure` says in words of what.
    """
    with drawing("curve", label, 4.9, 3.2) as drawn:
        axes, after = drawn.axes, np.arange(1, len(curve) + 1)
        axes.fill_between(after, lowest, highest, color=PALE, alpha=0.5, linewidth=0, label="from worst to best site")
        axes.plot(after, curve, color=BLUE, linewidth=2, marker="o", markersize=5, label="all sites together")
        axes.plot(after, chance, color=MUTED, linewidth=1.2, linestyle=(0, (1, 2)), label="chance")
        for task, value in zip(after, curve, strict=True):
            if not np.isnan(value):
                place = {"xytext": (0, 8), "textcoords": "offset points", "ha": "center"}
                axes.annotate(f"{value:.1f}", (task, value), weight="bold", **place)
        axes.set(xlabel="after task", ylabel=f"{measure}, %", xlim=(0.7, tasks + 0.3), ylim=(0, 110))
        axes.set_yticks(range(0, 101, 20))
        axes.set_xticks(np.unique(np.linspace(1, tasks, min(tasks, 10)).round().astype(int)))
        axes.grid(axis="y", color=RULE, linewidth=0.6)
        drawn.figure.legend(loc="outside upper left", ncols=3, fontsize=8)
    return drawn.svg


def accuracy_heatmap(matrix: Values, label: str) -> str:
    """Return a heatmap of accuracy per task (column) after each task (row), [T, T] percent; blank above diagonal."""
    names = [str(task) for task in range(1, len(matrix) + 1)]
    side = float(np.clip(0.55 * len(matrix) + 1.2, 2.2, 7.5))
    with drawing("matrix", label, min(side + 0.8, 7.5), side) as drawn:
        _cells(drawn.axes, matrix, names, "{:.1f}" if len(matrix) <= 10 else "{:.0f}", least=0)
        drawn.axes.set(xlabel="accuracy on the classes of task, %", ylabel="after task")
    return drawn.svg


def confusion_heatmap(counts: NDArray[np.int64], names: Sequence[str], sizes: Sequence[int], label: str) -> str:
    """Return a heatmap of [C, C] confusion counts as shares of their row; `sizes` counts the classes of each task."""
    return confusion_drawing("confusion", counts, names, sizes, label).svg


def confusion_drawing(
    name: str, counts: NDArray[np.int64], names: Sequence[str], sizes: Sequence[int], label: str
) -> Drawing:
    """Draw as `confusion_heatmap` does, under a given name, for pages and folders that hold several."""
    total = counts.sum(axis=1, keepdims=True)
    share = np.divide(100 * counts, total, out=np.full(counts.shape, np.nan), where=total > 0)
    side = max(0.42 * len(names) + 1.4, 4.2) if len(names) <= MOST_NUMBERED else 6.0
    with drawing(name, label, side, side) as drawn:
        axes = drawn.axes
        if len(names) <= MOST_NUMBERED:
            short = [shortened(name, 18) for name in names]
            _cells(axes, share, short, "{:.0f}", least=0.5)
            if max(map(len, short)) > 3:
                axes.tick_params(axis="x", rotation=90)
            axes.set(xlabel="recognised as", ylabel="true class")
        else:
            middles = np.cumsum(sizes) - np.asarray(sizes) / 2 - 0.5
            _cells(axes, share, [], "", least=0)
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_ticks(middles, [str(task) for task in range(1, len(sizes) + 1)])
            axes.set(xlabel="recognised as a class of task", ylabel="true class of task")
        for edge in np.cumsum(sizes)[:-1] - 0.5:
            axes.axhline(edge, color=MUTED, linewidth=0.8)
            axes.axvline(edge, color=MUTED, linewidth=0.8)
    return drawn


def site_bars(names: Sequence[str], shares: Values, together: float, worst: int, measure: str, label: str) -> str:
    """Return a bar per site, [K] percent, with the worst one marked; nan is a site without test images.

    `measure` says in words what the shares are of.
    """
    with drawing("sites", label, 4.9, max(0.27 * len(names) + 1.0, 1.8)) as drawn:
        axes, rows = drawn.axes, np.arange(len(names))
        colours = [RED if row == worst else BLUE for row in rows]
        axes.barh(rows, np.nan_to_num(shares), color=colours, height=0.68)
        for row, value in zip(rows, shares, strict=True):
            text = "no test images" if np.isnan(value) else f"worst {value:.1f}" if row == worst else f"{value:.1f}"
            weight = "bold" if row == worst else "normal"
            if value > 25:
                axes.text(1.5, row, text, va="center", color="white", weight=weight)
            else:
                colour = MUTED if np.isnan(value) else INK
                axes.text(np.nan_to_num(value) + 1.5, row, text, va="center", color=colour, weight=weight)
        axes.axvline(together, color=INK, linewidth=1, linestyle=(0, (4, 3)))
        axes.set_yticks(rows, [shortened(name) for name in names])
        axes.set(xlabel=f"{measure}, % (dashed: all sites together)", xlim=(0, 102), ylim=(len(names) - 0.4, -0.6))
        axes.tick_params(axis="y", length=0)
    return drawn.svg


def traffic_bars(stages: Sequence[str], up: Values, down: Values, label: str) -> str:
    """Return a plot of megabytes sent up (to the server) and down (to the sites) per stage, over all rounds."""
    with drawing("traffic", label, 4.9, 0.55 * len(stages) + 1.15) as drawn:
        axes, rows = drawn.axes, np.arange(len(stages))
        largest = max(float(np.max([up, down])), 1e-9)
        directions = ((up, -0.19, BLUE, "up, to the server"), (down, 0.19, PALE, "down, to the sites"))
        for values, shift, colour, name in directions:
            axes.barh(rows + shift, values, height=0.36, color=colour, label=name)
            for row, value in zip(rows, values, strict=True):
                text = f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
                axes.text(value + largest * 0.015, row + shift, text, va="center", fontsize=8)
        axes.set_yticks(rows, stages)
        axes.set(xlabel="megabytes, all sites and rounds", xlim=(0, largest * 1.14), ylim=(len(stages) - 0.5, -0.5))
        axes.tick_params(axis="y", length=0)
        drawn.figure.legend(loc="outside upper left", ncols=2, fontsize=8)
    return drawn.svg


def participation_grid(states: NDArray[np.int64], sites: Sequence[str], groups: Sequence[str], label: str) -> str:
    """Return a grid of sites (rows) by steps (columns): [K, S] of 0 no answer, 1 answered, 2 abstained, 3 failed.

    `groups` names the task of each step, in order; equal neighbours form one group.
    """
    with drawing("sites_by_step", label, 8.6, max(0.2 * len(sites) + 1.2, 1.7)) as drawn:
        axes = drawn.axes
        colours = {"answered": PALE, "abstained": GREY, "failed": RED}
        shades = ListedColormap(["white", *colours.values()])
        axes.imshow(states, cmap=shades, vmin=0, vmax=3, aspect="auto", interpolation="none")
        if states.shape[1] <= 150:
            _white_grid(axes, states.shape)
        for (row, column), sign in np.ndenumerate(np.array(["", "", "–", "×"])[states]):
            if sign:  # a sign beside the colour, for those who cannot tell colours apart
                axes.text(
                    column, row, sign, ha="center", va="center", color="white" if sign == "×" else INK, fontsize=8
                )
        starts = [0, *(step for step in range(1, len(groups)) if groups[step] != groups[step - 1]), len(groups)]
        for start in starts[1:-1]:
            axes.axvline(start - 0.5, color=MUTED, linewidth=0.8)
        middles = [(start + end - 1) / 2 for start, end in pairwise(starts)]
        axes.set_xticks(middles, [groups[start] for start in starts[:-1]])
        axes.set_yticks(range(len(sites)), [shortened(name) for name in sites])
        axes.set(xlabel="steps, by task")
        axes.tick_params(length=0)
        handles = [axes.bar([0], [0], color=colour, label=name) for name, colour in colours.items()]
        drawn.figure.legend(handles=handles, loc="outside upper left", ncols=3, fontsize=8)
        axes.set(xlim=(-0.5, len(groups) - 0.5), ylim=(len(sites) - 0.5, -0.5))
    return drawn.svg


def _cells(axes: Any, percent: Values, names: Sequence[str], number: str, least: float) -> None:
    """Draw a matrix of percents as shaded cells; if `number` is a format, cells from `least` on show their number."""
    axes.imshow(np.ma.masked_invalid(percent), cmap=SHADES, vmin=0, vmax=100, interpolation="none")
    axes.set_xticks(range(len(names)), names)
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    if number:
        _white_grid(axes, percent.shape)
        for (row, column), value in np.ndenumerate(percent):
            if value >= least:
                colour = readable_on(SHADES(value / 100))
                axes.text(column, row, number.format(value), ha="center", va="center", color=colour, fontsize=8.5)


def readable_on(colour: tuple[float, float, float, float]) -> str:
    """Return black or white, whichever can be read on a colour: its contrast is 4.5 at least (WCAG 2.2)."""
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in colour[:3]]
    return "white" if np.dot(linear, (0.2126, 0.7152, 0.0722)) < 0.179 else "black"


def _white_grid(axes: Any, shape: tuple[int, ...]) -> None:
    for axis in (axes.xaxis, axes.yaxis):
        axis.remove_overlapping_locs = False  # a label in the middle of a group must not take a line away
    axes.set_xticks(np.arange(shape[1] - 1) + 0.5, minor=True)
    axes.set_yticks(np.arange(shape[0] - 1) + 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.2)
    axes.tick_params(which="minor", length=0)
