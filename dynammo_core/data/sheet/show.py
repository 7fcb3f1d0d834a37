"""What `inspect` of both command lines does with an opened data set: print its data sheet, and write the page."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from dynammo_core.data.samples import Dataset
from dynammo_core.data.sheet.contact_sheet import PRIVATE, contact_sheet
from dynammo_core.data.sheet.data_sheet import Advance, data_sheet
from dynammo_core.data.sheet.tables import sheet_tables
from dynammo_core.support.files import write_atomically
from dynammo_core.support.terminal import Terminal


def show_sheet(dataset: Dataset, title: str, *, as_json: bool, page: Path | None) -> None:
    """Print the data sheet of a data set, and write it with images to `page`, for the eyes of the site alone.

    Raises:
        CheckpointError: the page cannot be written.
    """
    console = Terminal(highlight=False, emoji=False)
    with progress("reading headers", hidden=as_json) as advance:
        sheet = data_sheet(dataset, advance)
    if as_json:
        typer.echo(json.dumps({"data": title, **sheet.as_fields()}, indent=2))
    else:
        for table in sheet_tables(sheet):
            console.print(table)
    if page is not None:
        write_atomically(page, contact_sheet(dataset, sheet, title).encode(), mode=0o600)
        notes = Terminal(stderr=True)
        notes.say(f"Page: {page}")
        notes.say(PRIVATE)


@contextmanager
def progress(words: str, *, hidden: bool) -> Iterator[Advance]:
    """Show a bar on the terminal while images are looked at; yields what is told how many of how many are done."""
    console = Terminal(stderr=True)
    columns = (TextColumn(words), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=hidden or not console.is_terminal) as bar:
        task = bar.add_task("", total=None, visible=False)
        yield lambda done, total: bar.update(task, completed=done, total=total, visible=True)


class _Rate(ProgressColumn):
    """Shows how many images a second are done."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed or 0:.0f}/s")
