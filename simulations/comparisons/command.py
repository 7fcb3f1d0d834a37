"""Running a comparison from the command line: where it runs, what is shown meanwhile, and how it is stopped."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import typer
from rich.console import Console
from rich.markup import escape

from dynammo_core.support.terminal import Terminal
from simulations.comparisons.compare import Cell, Pool, missing_cells, run_missing
from simulations.comparisons.process_pool import in_processes
from simulations.comparisons.progress import ComparisonView


def run_under_display(cells: Sequence[Cell], runs: Path, console: Console, *, workers: int | None) -> int:
    """Run what is missing of comparisons, and say on standard error why runs failed.

    Args:
        cells: all runs of the comparisons.
        runs: folder of the run directories.
        console: where the progress is shown.
        workers: runs at a time; None for as many as this machine carries.

    Returns:
        How many runs failed.

    Raises:
        RunError: the workers cannot go on.
        typer.Exit: with 130, stopped by Ctrl-C or SIGTERM; no worker is left.
    """
    pool: Pool = partial(in_processes, workers=workers)
    missing = missing_cells(cells, runs)
    labels = {run_name: cell.label for run_name, cell in missing.items()}
    finished = len({cell.config.run_name for cell in cells}) - len(missing)
    try:
        with _sigterm_as_interrupt(), ComparisonView(console, labels, finished) as view:
            failed = run_missing(missing, runs, pool, view.update, view.finish)
    except KeyboardInterrupt:
        console.print("\nStopped. Go on with the same command; what has finished is not run again.", soft_wrap=True)
        raise typer.Exit(130) from None
    for outcome in failed:
        text = f"[bold red]error[/] {escape(f'{labels[outcome.run_name]}: {outcome.error}')}"
        Terminal(stderr=True).print(text, soft_wrap=True, highlight=False)
    return len(failed)


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """Let SIGTERM stop what Ctrl-C stops: a process that just dies would leave its workers at work."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
