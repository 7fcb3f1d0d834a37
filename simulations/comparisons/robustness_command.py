"""Measuring robustness from the command line: what is shown meanwhile, and what is left behind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import typer
from rich.console import Console

from dynammo_core.aggregation import AGGREGATORS
from dynammo_core.configuration.config import Scalar
from dynammo_core.experiment import code_hash
from simulations.comparisons.progress import ComparisonView
from simulations.comparisons.robustness import missing, plan, printed, rows, run_cells, write_rows

DEFAULT_ATTACKS = ("sign_flip", "scale")


def measure(
    config: Path,
    overrides: Mapping[str, Scalar],
    console: Console,
    liars: int,
    attacks: Sequence[str] | None,
    aggregators: Sequence[str] | None,
    runs: Path,
) -> None:
    """Run what is missing, print the table, and write it to `<runs>/<run name of the mean>/`.

    Raises:
        DynammoError: the configuration is wrong, or a run without liars cannot go on.
        typer.Exit: with 130, stopped by Ctrl-C.
    """
    attacks = list(dict.fromkeys(attacks or DEFAULT_ATTACKS))
    cells = plan(config, overrides, aggregators=aggregators or list(AGGREGATORS), attacks=attacks, liars=liars)
    errors: dict[str, str] = {}
    left = missing(cells, runs)
    try:
        with ComparisonView(console, {label: label for label in left}, len(cells) - len(left)) as view:
            for outcome in run_cells(left, runs, view.update):
                errors[outcome.run_name] = outcome.error
                view.finish(outcome)
    except KeyboardInterrupt:
        console.print("\nStopped. Go on with the same command; what has finished is not run again.", soft_wrap=True)
        raise typer.Exit(130) from None
    shared, table = cells[0].config, rows(cells, runs, errors)
    facts = {
        "sites": shared.federation.sites,
        "liars": liars,
        "partition": shared.federation.partition,
        "seed": shared.seed,
        "config": shared.model_dump(mode="json"),
        "code_hash": code_hash(),
    }
    title = f"{shared.name}: {liars} of {shared.federation.sites} sites lying, {shared.federation.partition}"
    console.print(printed(table, title))
    file = write_rows(table, runs / shared.run_name, facts)
    console.print(f"Table: {file}", soft_wrap=True, markup=False, highlight=False)
