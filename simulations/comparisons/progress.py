"""What people see while a comparison runs: a bar for all runs, and one for each run in hand, with the time left.

Where the output is not a terminal, such as a log: a line for each run that has ended.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.text import Text

from dynammo_core.support.terminal import Terminal
from server.watch.run_state import RunState
from simulations.comparisons.compare import Cell, missing_cells
from simulations.comparisons.process_pool import Outcome, Pool, in_processes, one_by_one


class TimeLeft(ProgressColumn):
    """Time to the moment in the field `ends`, in unix seconds; nothing where that is not known."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__()
        self._clock = clock

    def text(self, ends: float | None) -> str:
        """Format as `0:12:05 left`; empty if unknown."""
        seconds = 0 if ends is None else max(round(ends - self._clock()), 0)
        return f"{timedelta(seconds=seconds)} left" if seconds else ""

    def render(self, task: Task) -> Text:
        """Return the text, dimmed."""
        return Text(self.text(task.fields["ends"]), style="dim")


class ComparisonView:
    """Shows the runs of a comparison; a context manager fed by `update` and `finish`.

    Args:
        console: where to.
        labels: what people call each run that is to be done, by its name.
        finished: runs of the comparison that are finished already.
        clock: unix seconds.
    """

    def __init__(
        self, console: Console, labels: Mapping[str, str], finished: int, clock: Callable[[], float] = time.time
    ) -> None:
        self._left = TimeLeft(clock)
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[count]}"), self._left)
        self.progress = Progress(*columns, console=console, disable=not console.is_terminal)
        self._console, self._labels, self._clock = console, labels, clock
        self._finished, self._total = finished, finished + len(labels)
        self._started: float | None = None
        self._ended = 0
        self._ends: float | None = None
        self._states: dict[str, RunState] = {}
        self._bars: dict[str, TaskID] = {}
        self._all = self.progress.add_task("all runs", total=max(self._total, 1), count="", ends=None)
        self._show_all()

    def __enter__(self) -> ComparisonView:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for bar in self._bars.values():
            self.progress.remove_task(bar)
        self.progress.stop()

    def update(self, run_name: str, event: Mapping[str, Any]) -> None:
        """Show what an event of a run changes."""
        if self._started is None:
            self._started = self._clock()
        state = self._states.setdefault(run_name, RunState())
        state.update(event)
        if run_name not in self._bars:
            self._bars[run_name] = self.progress.add_task(self._labels[run_name], count="", ends=None)
        steps, left = len(state.start["plan"]), state.seconds_left(self._clock())
        self.progress.update(
            self._bars[run_name],
            total=max(steps, 1),
            completed=state.finished,
            count=f"{state.finished}/{steps} steps",
            ends=None if left is None else self._clock() + left,
        )
        self._show_all()

    def finish(self, outcome: Outcome) -> None:
        """Take the bar of a run away, and count the run where it completed."""
        self._states.pop(outcome.run_name, None)
        if (bar := self._bars.pop(outcome.run_name, None)) is not None:
            self.progress.remove_task(bar)
        self._ended += 1
        self._finished += not outcome.error
        self._show_all()
        if not self._console.is_terminal:
            ending = "failed" if outcome.error else "finished"
            line = f"[{self._finished}/{self._total} runs] {self._labels[outcome.run_name]} {ending}"
            time_left = filter(None, [self._left.text(self._ends)])
            self._console.print(line, *time_left, sep=", ", markup=False, highlight=False, soft_wrap=True)

    def _show_all(self) -> None:
        """Update the bar of all runs; the time left is that of the runs to come, at the speed so far."""
        shares = [state.finished / len(state.start["plan"]) for state in self._states.values() if state.start["plan"]]
        done = self._ended + sum(shares)
        self._ends = None
        if self._started is not None and done > 0:
            now = self._clock()
            self._ends = now + (now - self._started) * (len(self._labels) - done) / done
        self.progress.update(
            self._all,
            completed=self._finished + sum(shares),
            count=f"{self._finished}/{self._total} runs",
            ends=self._ends,
        )


def run_under_display(cells: Sequence[Cell], runs: Path, console: Console, *, workers: int | None) -> dict[str, str]:
    """Run what is missing of comparisons under a display, and say on standard error why runs failed.

    Args:
        cells: all runs of the comparisons.
        runs: folder of the run directories.
        console: where the progress is shown.
        workers: runs at a time, a single one in this process; None for as many as this machine carries.

    Returns:
        Why runs failed, by their name.

    Raises:
        RunError: the workers cannot go on.
        typer.Exit: with 130, stopped by Ctrl-C or SIGTERM; no worker is left.
    """
    pool: Pool = one_by_one if workers == 1 else partial(in_processes, workers=workers)
    missing = missing_cells(cells, runs)
    failed: list[Outcome] = []
    labels = {run_name: cell.label for run_name, cell in missing.items()}
    finished = len({cell.run_name for cell in cells}) - len(missing)
    try:
        with (
            _sigterm_as_interrupt(),
            ComparisonView(console, labels, finished) as view,
            closing(pool(list(missing.values()), runs, view.update)) as outcomes,
        ):
            for outcome in outcomes:  # a failure does not keep the others from running
                view.finish(outcome)
                failed += [outcome] if outcome.error else []
    except KeyboardInterrupt:
        console.print(
            "\nStopped. To continue, repeat the same command; finished runs are not repeated.", soft_wrap=True
        )
        raise typer.Exit(130) from None
    for outcome in failed:
        text = f"[bold red]error[/] {escape(f'{labels[outcome.run_name]}: {outcome.error}')}"
        Terminal(stderr=True).print(text, soft_wrap=True, highlight=False)
    return {outcome.run_name: outcome.error for outcome in failed}


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
