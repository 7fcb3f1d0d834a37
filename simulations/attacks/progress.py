"""What people see while a run is attacked: a bar for each part of the work."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn


class AttackView:
    """A context manager whose `update` is a `Tell`.

    Args:
        console: where to.
        name: what people call the run.
    """

    def __init__(self, console: Console, name: str) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.progress = Progress(*columns, console=console)
        self._name = name
        self._bars: dict[str, TaskID] = {}

    def __enter__(self) -> AttackView:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()

    def update(self, what: str, done: int, total: int) -> None:
        """Show how much of a part is done."""
        if what not in self._bars:
            self._bars[what] = self.progress.add_task(f"{escape(self._name)}: {what}", total=total)
        self.progress.update(self._bars[what], completed=done)
