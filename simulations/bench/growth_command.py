"""`dynammo-sim bench growth`: time, memory and bytes against tasks, sites, classes and exemplars, on one page."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE
from rich.progress import Progress
from rich.table import Table

from dynammo_core.support.errors import ConfigError, unknown_name
from dynammo_core.support.terminal import Terminal, parse_overrides, readable_errors
from simulations.bench.inference import PASS_PER_TASK
from simulations.options import Overrides

if TYPE_CHECKING:
    from dynammo_core.configuration.config import Scalar
    from simulations.bench.growth import Measured, Shape
    from simulations.bench.growth_page import Answers

console = Terminal()
ANSWERING = "efficientnet_lite0"
ANSWERING_PIXELS = 48


def growth(
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="AXIS[=VALUES]",
            help="Of tasks, sites, classes and exemplars, with other values: tasks=1,5. Repeatable.",
            show_default="all four",
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the page.")] = Path("runs/growth"),
    set_: Overrides = None,
) -> None:
    """What grows with what: small real runs, each in its own process; a table, and a page of log-log plots."""
    with readable_errors():
        from dataclasses import asdict

        from dynammo_core.experiment import code_hash
        from dynammo_core.support.files import write_atomically
        from simulations.bench.growth import AXES, SMALLEST, along, growths, measured_apart
        from simulations.bench.growth_page import ANSWER_COLUMNS, answer_rows, growth_page, rows

        overrides = parse_overrides(set_ or [])
        SMALLEST.config(Path("images"), overrides)  # what is wrong there is said before the first process starts
        values = _values(only)
        found = {}
        with Progress(console=console, transient=True) as progress:
            bar = progress.add_task("Measuring", total=sum(map(len, values.values())))

            def take(shape: Shape) -> Measured:
                measured = measured_apart(shape, overrides)
                progress.advance(bar)
                return measured

            for name, taken in along(values, take):
                points, grown = found[name] = (values[name], growths(values[name], taken))
                table = Table(name, *map(str, points), "exponent", "last two", box=SIMPLE, caption=AXES[name].words)
                for row in rows(points, grown):
                    table.add_row(*row)
                console.print(table)
        answers = _answers(values.get("tasks", ()), overrides)
        if answers:
            table = Table(*ANSWER_COLUMNS, box=SIMPLE, caption=f"an answer of {ANSWERING}")
            for row in answer_rows(answers):
                table.add_row(*row)
            console.print(table)
        command = shlex.join(["dynammo-sim", "bench", "growth", *_options("--only", only), *_options("--set", set_)])
        page = growth_page(
            found,
            answers,
            network=f"{ANSWERING} at {ANSWERING_PIXELS} pixels",
            command=command,
            code=code_hash()[:12],
        )
        axes = {
            name: {"points": points, **{quantity: asdict(one) for quantity, one in grown.items()}}
            for name, (points, grown) in found.items()
        }
        content = {"command": command, "code_hash": code_hash(), "axes": axes, "answers": answers}
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(out / "growth.json", (json.dumps(content, indent=2) + "\n").encode())
        write_atomically(out / "growth.html", page.encode())
        console.print(f"Page: {out / 'growth.html'}", soft_wrap=True, markup=False, highlight=False)


def _options(name: str, given: list[str] | None) -> list[str]:
    return [word for value in given or () for word in (name, value)]


def _values(only: list[str] | None) -> dict[str, tuple[int, ...]]:
    """The values of each axis that is asked for.

    Raises:
        ConfigError: an unknown axis, or values that are no numbers that it can have.
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
            raise ConfigError(f"--only {text}: {numbers!r} are no whole numbers", accepted="1,2,5") from None
        least, most = axis.limits
        if not least <= chosen[name][0] <= chosen[name][-1] <= most:
            raise ConfigError(f"--only {text}: out of range", accepted=f"{least} to {most}")
    return chosen


def _answers(tasks: tuple[int, ...], overrides: dict[str, Scalar]) -> Answers:
    """What an answer costs after so many tasks of two classes, by the method and by one with a pass for each task."""
    if not tasks:
        return []
    from dynammo_core.configuration.settings import BackboneSettings
    from dynammo_core.experiment import Experiment
    from dynammo_core.scoring.cost import cost_table, method_settings
    from simulations.bench.growth import SMALLEST

    config = SMALLEST.config(Path("images"), overrides)
    Experiment(config).use_torch()
    names = dict.fromkeys([config.method.name, PASS_PER_TASK])
    return cost_table(
        BackboneSettings(name=ANSWERING, weights="random"),
        method_settings(list(names), config.method),
        seed=config.seed,
        image_size=ANSWERING_PIXELS,
        classes_per_task=2,
        tasks=tasks,
    )
