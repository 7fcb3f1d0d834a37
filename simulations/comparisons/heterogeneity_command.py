"""`dynammo-sim heterogeneity`: what is shown meanwhile, and what is left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dynammo_core.support.terminal import Terminal, parse_overrides, readable_errors
from simulations.options import ConfigFile, Overrides

console = Terminal()


def heterogeneity(
    config: ConfigFile,
    seed: Annotated[
        list[int] | None,
        typer.Option(help="A seed of the runs. Repeatable; figures are means.", show_default="the experiment's"),
    ] = None,
    statistics: Annotated[
        list[str] | None,
        typer.Option(help="A value of scanners.own_statistics to try. Repeatable.", show_default="trained, frozen"),
    ] = None,
    set_: Overrides = None,
    runs: Annotated[Path, typer.Option(help="Folder for run directories and the table.")] = Path("runs/heterogeneity"),
) -> None:
    """Train at one site and test at all, with one scanner and with others; what has finished is not run again."""
    with readable_errors():
        from dynammo_core.experiment import code_hash
        from simulations.comparisons.heterogeneity import missing, plan, printed, rows, run_cells, write_rows
        from simulations.comparisons.progress import ComparisonView

        trials = plan(
            config,
            parse_overrides(set_ or []),
            seeds=list(dict.fromkeys(seed or [])),
            statistics=statistics or ["trained", "frozen"],
        )
        left = missing(trials, runs)
        finished = sum(len(trial.cells) for trial in trials) - len(left)
        try:
            with ComparisonView(console, {label: label for label in left}, finished) as view:
                for outcome in run_cells(left, runs, view.update):
                    view.finish(outcome)
        except KeyboardInterrupt:
            console.print("\nStopped. Go on with the same command; what has finished is not run again.", soft_wrap=True)
            raise typer.Exit(130) from None
        shared, table = trials[-1].cells[0].config, rows(trials, runs)
        seeds = [cell.seed for cell in trials[0].cells]
        facts = {"seeds": seeds, "config": shared.model_dump(mode="json"), "code_hash": code_hash()}
        console.print(printed(table, f"{shared.name}: last accuracy by site, mean over seeds {seeds}"))
        file = write_rows(table, runs / shared.name, facts)
        console.print(f"Table: {file}", soft_wrap=True, markup=False, highlight=False)
