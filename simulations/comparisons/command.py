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

from dynammo_core.support.errors import ConfigError
from dynammo_core.support.terminal import Terminal
from simulations.comparisons.compare import Cell, Pool, missing_cells, run_missing
from simulations.comparisons.progress import ComparisonView
from simulations.engines.process_pool import in_processes


def run_under_display(
    cells: Sequence[Cell], runs: Path, console: Console, *, workers: int | None, ray: str | None
) -> int:
    """Run what is missing of comparisons, and say on standard error why runs failed.

    Args:
        cells: all runs of the comparisons.
        runs: folder of the run directories.
        console: where the progress is shown.
        workers: runs at a time on this machine; None for as many as it carries.
        ray: address of a Ray cluster to run on instead; None for this machine.

    Returns:
        How many runs failed.

    Raises:
        ConfigError: both `workers` and `ray` are given.
        RunError: the workers or the cluster cannot go on.
        typer.Exit: with 130, stopped by Ctrl-C or SIGTERM; no worker is left.
    """
    if ray is not None and workers is not None:
        raise ConfigError("--workers is of this machine, and --ray of a cluster", accepted="one of them")
    pool: Pool = partial(in_processes, workers=workers)
    if ray is not None:
        from simulations.engines.ray_pool import on_ray  # Ray takes seconds to import, which others need not pay

        pool = partial(on_ray, address=ray)
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
        where = f" at {outcome.node}" if outcome.node else ""
        text = f"[bold red]error[/] {escape(f'{labels[outcome.run_name]}{where}: {outcome.error}')}"
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
