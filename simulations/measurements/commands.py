"""Measurements that are grids of runs, as commands: each runs what is missing and leaves a table and a page."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dynammo_core.support.terminal import Terminal, parse_overrides, readable_errors
from simulations.options import ConfigFile, Overrides, Workers

if TYPE_CHECKING:
    from simulations.comparisons.compare import Cell, Json

console = Terminal()


def robustness(
    config: ConfigFile,
    liars: Annotated[
        int, typer.Option(min=1, help="Number of malicious sites that the aggregators must withstand.")
    ] = 1,
    attack: Annotated[
        list[str] | None,
        typer.Option(
            help="Attack with [bold]sign_flip[/] (reversed updates), [bold]scale[/] (ten times as long) or "
            "[bold]silence[/] (no answer). Repeatable.",
            show_default="sign_flip, scale",
        ),
    ] = None,
    aggregator: Annotated[
        list[str] | None, typer.Option(help="Aggregator to compare with the mean. Repeatable.", show_default="all")
    ] = None,
    set_: Overrides = None,
    runs: Annotated[Path, typer.Option(help="Folder for run directories and the table.")] = Path("runs/robustness"),
    workers: Workers = None,
) -> None:
    """Measure which aggregators withstand malicious sites; finished runs are not repeated."""
    with readable_errors():
        from dynammo_core.aggregation import AGGREGATORS
        from simulations.comparisons.progress import run_under_display
        from simulations.measurements.figures import printed
        from simulations.measurements.robustness import COLUMNS, plan, rows

        cells = plan(
            config,
            parse_overrides(set_ or []),
            aggregators=aggregator or list(AGGREGATORS),
            attacks=list(dict.fromkeys(attack or ("sign_flip", "scale"))),
            liars=liars,
        )
        errors = run_under_display(cells, runs, console, workers=workers)
        table, shared = rows(cells, runs, errors), cells[0].config
        federation = shared.federation
        title = f"{shared.name}: {liars} of {federation.sites} sites lying, {federation.partition}"
        console.print(printed(table, COLUMNS, title))
        facts = {
            "sites": federation.sites,
            "liars": liars,
            "partition": federation.partition,
            "seed": shared.seed,
        }
        options = {"--liars": [liars], "--attack": attack, "--aggregator": aggregator, "--set": set_, "--runs": [runs]}
        command = _again("robustness", config, options)
        _leave("robustness", table, cells, errors, runs, runs / shared.run_name, facts, command)


def heterogeneity(
    config: ConfigFile,
    seed: Annotated[
        list[int] | None,
        typer.Option(
            help="Random seed of a run. Repeatable; figures are means over seeds.", show_default="the experiment's"
        ),
    ] = None,
    statistics: Annotated[
        list[str] | None,
        typer.Option(help="Value of scanners.own_statistics to try. Repeatable.", show_default="trained, frozen"),
    ] = None,
    set_: Overrides = None,
    runs: Annotated[Path, typer.Option(help="Folder for run directories and the table.")] = Path("runs/heterogeneity"),
    workers: Workers = None,
) -> None:
    """Train at one site and test at all, with equal and with different scanners; finished runs are not repeated."""
    with readable_errors():
        from simulations.comparisons.progress import run_under_display
        from simulations.measurements.figures import printed
        from simulations.measurements.heterogeneity import MEASURES, columns, plan, rows

        cells = plan(
            config,
            parse_overrides(set_ or []),
            seeds=list(dict.fromkeys(seed or [])),
            statistics=statistics or ["trained", "frozen"],
        )
        errors = run_under_display(cells, runs, console, workers=workers)
        table, shared = rows(cells, runs), cells[-1].config
        seeds = list(dict.fromkeys(cell.seed for cell in cells))
        for measure in MEASURES:
            title = f"{shared.name}: last {measure} by site, mean over seeds {seeds}"
            console.print(printed(table, columns(shared.federation.sites, measure), title, part="scanners"))
        options = {"--seed": seed, "--statistics": statistics, "--set": set_, "--runs": [runs]}
        command = _again("heterogeneity", config, options)
        _leave("heterogeneity", table, cells, errors, runs, runs / shared.name, {"seeds": seeds}, command)


def privacy(
    config: Annotated[
        Path,
        typer.Argument(
            metavar="CONFIG", help="YAML file of an experiment with differential privacy.", show_default=False
        ),
    ],
    epsilon: Annotated[
        list[float] | None,
        typer.Option(help="Privacy budget to measure. Repeatable.", show_default="8, 4, 2", min=0.01),
    ] = None,
    set_: Overrides = None,
    runs: Annotated[Path, typer.Option(help="Folder for run directories and the table.")] = Path("runs/privacy"),
    workers: Workers = None,
) -> None:
    """Measure how much accuracy differential privacy costs, by running without it and with each budget."""
    with readable_errors():
        from simulations.comparisons.progress import run_under_display
        from simulations.measurements.figures import printed
        from simulations.measurements.privacy import COLUMNS, plan, rows

        cells = plan(config, epsilon or [8, 4, 2], parse_overrides(set_ or []))
        errors = run_under_display(cells, runs, console, workers=workers)
        if table := rows(cells, runs):
            console.print(printed(table, COLUMNS, " ".join([str(config), *(set_ or [])])))
        command = _again("bench privacy", config, {"--epsilon": epsilon, "--set": set_, "--runs": [runs]})
        _leave("privacy", table, cells, errors, runs, runs / cells[0].config.run_name, {}, command)


def traffic(
    config: ConfigFile,
    beside: Annotated[
        list[str] | None,
        typer.Option(
            metavar="METHOD[,KEY=VALUE...]",
            help="Measure another method too, with the settings that it shares with the configured one. Repeatable.",
            show_default=False,
        ),
    ] = None,
    set_: Overrides = None,
    runs: Annotated[Path, typer.Option(help="Folder for run directories and the table.")] = Path("runs/bytes"),
    workers: Workers = None,
) -> None:
    """Count the bytes that a site sends and receives, for the whole network, the method and each compression."""
    with readable_errors():
        from dynammo_core.configuration.config import load_config
        from simulations.comparisons.progress import run_under_display
        from simulations.measurements.figures import printed
        from simulations.measurements.traffic import COLUMNS, plan, rows, whole_network

        settings = load_config(config, parse_overrides(set_ or []))
        cells = plan(settings, beside or [])
        errors = run_under_display(cells, runs, console, workers=workers)
        table = rows(cells, runs, whole_network(settings))
        console.print(printed(table, COLUMNS, str(config), part="method"))
        command = _again("bench bytes", config, {"--beside": beside, "--set": set_, "--runs": [runs]})
        _leave("bytes", table, cells, errors, runs, runs / settings.run_name, {}, command)


def secure(config: ConfigFile, set_: Overrides = None) -> None:
    """Measure how many bytes and seconds secure aggregation costs, by running with and without it.

    Both runs are always repeated, in this process: times from another day or beside other work do not compare.
    """
    with readable_errors():
        from dynammo_core.configuration.config import load_config
        from simulations.comparisons.progress import run_under_display
        from simulations.measurements.secure import plan, secure_cost

        cells = plan(load_config(config, parse_overrides(set_ or [])))
        with tempfile.TemporaryDirectory(prefix="dynammo-secure-") as folder:
            run_under_display(cells, Path(folder), console, workers=1)
            cost = secure_cost(cells, Path(folder))
        if cost is None:
            raise typer.Exit(1)
        console.print(str(cost), highlight=False, soft_wrap=True)


def _again(command: str, config: Path, options: Mapping[str, Sequence[object] | None]) -> str:
    """Return the command line that makes the same page."""
    words = [str(word) for name, values in options.items() for value in values or () for word in (name, value)]
    return shlex.join(["dynammo-sim", *command.split(), str(config), *words])


def _leave(
    name: str,
    table: Sequence[Json],
    cells: Sequence[Cell],
    errors: Mapping[str, str],
    runs: Path,
    folder: Path,
    facts: Mapping[str, object],
    command: str,
) -> None:
    """Write the table and the page of all runs.

    Raises:
        typer.Exit: with 1, a run over an honest wire failed.
    """
    from simulations.comparisons.compare import METRICS, grouped, missing_cells
    from simulations.comparisons.page import write_page
    from simulations.measurements.figures import write_rows

    if table:
        file = write_rows(name, table, cells, folder, facts)
        page = write_page(
            folder,
            title=name,
            command=command,
            groups=grouped(cells, runs),
            metric=METRICS["accuracy"],
            missing=[cell.label for cell in missing_cells(cells, runs).values()],
        )
        console.print(f"Table: {file}\nPage: {page}", soft_wrap=True, markup=False, highlight=False)
    if any(cell.wire.honest for cell in cells if cell.run_name in errors):
        raise typer.Exit(1)
