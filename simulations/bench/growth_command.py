"""`dynammo-sim bench growth`: time, memory and bytes against tasks, sites, classes and exemplars."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE
from rich.filesize import decimal
from rich.progress import Progress
from rich.table import Table

from dynammo_core.support.errors import ConfigError, unknown_name
from dynammo_core.support.terminal import Terminal, parse_overrides, readable_errors
from simulations.options import Overrides

if TYPE_CHECKING:
    from server.report.plots import Drawing
    from simulations.bench.growth import Growth

    Found = Mapping[str, tuple[Sequence[int], Mapping[str, Growth]]]

console = Terminal()


def growth(
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="AXIS[=VALUES]",
            help="Measure only this axis (tasks, sites, classes or exemplars), with these values if given, such as "
            "tasks=1,5. Repeatable.",
            show_default="all four",
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the numbers and the figure.")] = Path("runs/growth"),
    set_: Overrides = None,
) -> None:
    """Measure how time, memory and bytes grow with tasks, sites, classes and exemplars, in small real runs."""
    with readable_errors():
        from dataclasses import asdict

        from dynammo_core.code_identity import project_hash
        from dynammo_core.support.files import write_atomically
        from simulations.bench.growth import AXES, SMALLEST, growths, measured_apart

        overrides = parse_overrides(set_ or [])
        SMALLEST.config(Path("images"), overrides)  # what is wrong there is said before the first process starts
        values = _values(only)
        found: dict[str, tuple[Sequence[int], Mapping[str, Growth]]] = {}
        with Progress(console=console, transient=True) as progress:
            bar = progress.add_task("Measuring", total=sum(map(len, values.values())))
            for name, points in values.items():
                taken = []
                for point in points:
                    taken.append(measured_apart(AXES[name].shape(point), overrides))
                    progress.advance(bar)
                found[name] = (points, growths(points, taken))
                table = Table(name, *map(str, points), "exponent", "last two", box=SIMPLE, caption=AXES[name].words)
                for row in rows(*found[name]):
                    table.add_row(*row)
                console.print(table)
        options = [word for one in only or () for word in ("--only", one)]
        options += [word for one in set_ or () for word in ("--set", one)]
        axes = {
            name: {"points": points, **{quantity: asdict(one) for quantity, one in grown.items()}}
            for name, (points, grown) in found.items()
        }
        command = shlex.join(["dynammo-sim", "bench", "growth", *options])
        content = {"command": command, "code_hash": project_hash(), "axes": axes}
        write_atomically(out / "growth.json", (json.dumps(content, indent=2) + "\n").encode())
        drawn = figure(found)
        write_atomically(out / "growth.svg", drawn.svg.encode())
        write_atomically(out / "growth.png", drawn.png())
        console.print(f"Numbers and figure: {out}/growth.*", soft_wrap=True, markup=False, highlight=False)


def rows(points: Sequence[int], growth: Mapping[str, Growth]) -> list[list[str]]:
    """Return for people a row per quantity that there is: its words, its values, both exponents.

    Seconds are multiples of those at the first point, as bare ones say more about the machine.
    """
    from simulations.bench.growth import QUANTITIES

    table = []
    for name, one in growth.items():
        if any(one.values):
            shown = [f"× {v / one.values[0]:.2f}" if name == "seconds" else decimal(round(v)) for v in one.values]
            slopes = ("" if slope is None else f"{slope + 0.0:.2f}" for slope in (one.exponent, one.last))
            table.append([QUANTITIES[name], *shown, *slopes])
    return table


def figure(found: Found) -> Drawing:
    """Draw a panel per axis, both scales logarithmic: multiples of the first point, a line per quantity."""
    from server.report.plots import MUTED, RULE, drawing
    from simulations.comparisons.plots import COLOURS, DASHES, looks

    label = f"Log-log plots of multiples of the first point along {', '.join(found)}; dashed: proportional growth."
    with drawing("growth", label, 3.2 * len(found) + 1, 4.2) as drawn:
        drawn.axes.remove()
        (panels,) = drawn.figure.subplots(1, len(found), squeeze=False)
        for panel, (axis, (points, growth)) in zip(panels, found.items(), strict=True):
            panel.plot(points, [x / points[0] for x in points], color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)))
            for place, (name, one) in enumerate(growth.items()):
                colour, marker = looks(place)
                if min(one.values) > 0:
                    panel.plot(
                        points,
                        [value / one.values[0] for value in one.values],
                        color=colour,
                        linestyle=DASHES[place // len(COLOURS)],
                        marker=marker,
                        markersize=4,
                        label=name,
                    )
            panel.set(xscale="log", yscale="log", xlabel=axis)
            panel.grid(color=RULE, linewidth=0.5)
        lines = {text: line for panel in panels for line, text in zip(*panel.get_legend_handles_labels(), strict=True)}
        drawn.figure.legend(lines.values(), lines, loc="outside upper left", ncols=5, fontsize=8)
    return drawn


def _values(only: list[str] | None) -> dict[str, tuple[int, ...]]:
    """Return the values of each axis that is asked for.

    Raises:
        ConfigError: an unknown axis, or values that it cannot have.
    """
    from simulations.bench.growth import AXES

    chosen: dict[str, tuple[int, ...]] = {}
    for text in only or AXES:
        name, equals, numbers = text.partition("=")
        if name not in AXES:
            raise ConfigError(f"--only: {unknown_name('axis', name, AXES)}", accepted=", ".join(AXES))
        axis = AXES[name]
        try:
            chosen[name] = tuple(sorted(set(map(int, numbers.split(","))))) if equals else axis.values
        except ValueError:
            raise ConfigError(f"--only {text}: {numbers!r} is not a list of integers", accepted="1,2,5") from None
        least, most = axis.limits
        if not least <= chosen[name][0] <= chosen[name][-1] <= most:
            raise ConfigError(f"--only {text}: out of range", accepted=f"{least} to {most}")
    return chosen
