"""`dynammo-server status`: show all runs, or one with its sites, in a terminal, as JSON or as a web page."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table

from dynammo_core.support.errors import ConfigError
from dynammo_core.support.terminal import Terminal, cell, listing, readable_errors
from server.watch.progress import percent, progress_panel

if TYPE_CHECKING:
    from server.watch.lookout import Lookout, Overview
    from server.watch.status import RunStatus, SiteStatus

LOOK_SECONDS = 0.5
STYLES = {"completed": "green", "stopped": "yellow", "failed": "red", "dead": "red", "unreadable": "red"} | {
    "waited for": "yellow",
    "not connected": "yellow",
}


def status(
    run_dir: Annotated[
        Path | None,
        typer.Argument(metavar="RUN_DIR", help="The run directory; default: all runs.", show_default=False),
    ] = None,
    serve: Annotated[
        int | None,
        typer.Option(
            metavar="PORT", min=0, max=65535, help="Serve it as a web page on 127.0.0.1; 0 picks a free port."
        ),
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Show it once instead of following it.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON, once.")] = False,
    folder: Annotated[
        Path,
        typer.Option("--folder", envvar="DYNAMMO_CONSORTIUM", help="The consortium's folder, made by `init`."),
    ] = Path("consortium"),
) -> None:
    """Show the status of all runs, or of one with its sites; Ctrl-C stops watching, not the run."""
    with readable_errors():
        from server.consortium.control import Control
        from server.consortium.settings import load_server
        from server.watch.lookout import Lookout, run_directories
        from server.watch.status import RunStatus

        if serve is not None and (once or as_json):
            raise ConfigError(
                "--serve cannot be combined with --once or --json", remedy="Fetch /status.json from the page instead"
            )
        settings = load_server(folder)
        chosen = run_dir.resolve() if run_dir else None
        if chosen:
            RunStatus.read(chosen)  # or there is nothing to look at
        lookout = Lookout(
            lambda: [chosen] if chosen else run_directories(settings.runs), Control(settings).runs, settings.folder
        )
        console = Terminal()
        if serve is not None:
            from server.watch.status_page import serve_status

            serve_status(
                lookout, serve, on_ready=lambda url: console.print(f"{url} shows the status. Ctrl-C stops serving it.")
            )
        elif as_json:
            typer.echo(json.dumps(lookout.look().as_fields(time.time()), indent=2))
        elif chosen and not once and console.is_interactive and console.file.isatty():
            watch(lookout, console)
        else:
            overview, now = lookout.look(), time.time()
            if overview.runs:
                console.print(run_view(overview.runs[0], now) if chosen else runs_table(overview, now))
            for words in remarks(overview):  # not wrapped: they hold commands to copy
                console.say(words)


def watch(lookout: Lookout, console: Console) -> None:
    """Show one run until it ends, or until Ctrl-C."""
    overview = lookout.look()
    try:
        with Live(_with_remarks(overview), console=console, auto_refresh=False) as live:
            while overview.runs[0].goes_on:
                time.sleep(LOOK_SECONDS)
                overview = lookout.look()
                live.update(_with_remarks(overview), refresh=True)
    except KeyboardInterrupt:
        return


def runs_table(overview: Overview, now: float) -> Table:
    """Return a table with a row per run; `now` in unix seconds."""
    from server.watch.status import age

    table = listing("run", "state", "task", "accuracy", "class\nrecall", "started", "last event")
    for run in overview.runs:
        started = "-" if run.started is None else f"{datetime.fromtimestamp(run.started):%Y-%m-%d %H:%M}"
        heard = "-" if run.heard is None else f"{age(run.heard, now)} ago"
        state = cell(run.state, STYLES.get(run.state, ""))
        measured = (percent(run.accuracy), percent(run.recall))
        table.add_row(cell(run.directory.name), state, run.task, *measured, started, heard)
    return table


def run_view(run: RunStatus, now: float) -> RenderableType:
    """Return the progress of a run and a row per site; `now` in unix seconds."""
    from server.watch.status import age

    columns = ("answered\nago", "took", "images\nper s", "accu-\nracy", "class\nrecall", "abs-\ntained", "failed")
    table = listing("site", "state", *columns)
    for site in run.sites:
        table.add_row(
            cell(site.name),
            cell(site.state, STYLES.get(site.state, "")),
            "-" if site.answered is None else age(site.answered, now),
            "-" if site.seconds is None else f"{site.seconds:.1f} s",
            "-" if site.speed is None else f"{site.speed:.1f}",
            percent(site.accuracy),
            percent(site.recall),
            str(site.abstained),
            cell(str(site.failures), "red" if site.failures else ""),
        )
    told = run.state == "failed"  # then the note says what failed, and what to ask
    errors = [] if told else [cell(words) for site in run.sites for words in _failure_of(site)]
    return Group(progress_panel(run.progress, run.moment(now), "" if run.goes_on else run.state), table, *errors)


def _failure_of(site: SiteStatus) -> Iterator[str]:
    """Yield how a site failed and what to ask there; if it answered since, only how it last failed."""
    if site.state == "failed" and site.ask:
        yield f"{site.name} failed ({site.error}): {site.ask}"
        return
    if site.error:
        yield f"{site.name} last failed with {site.error}"
    if site.ask:
        yield f"{site.name}: {site.ask}"


def remarks(overview: Overview) -> list[str]:
    """Return notes on single runs, and on what is not known."""
    told = [run for run in overview.current if run.note]
    words = [f"{run.directory.name} {run.state}: {run.note}" for run in told]
    held = [run for run in overview.runs if run.progress.held]
    words += [f"{run.directory.name}: {run.progress.held}. Release it with: {run.release_command}" for run in held]
    return [*(words if overview.runs else ["There are no runs yet."]), *overview.warnings]


def _with_remarks(overview: Overview) -> Group:
    return Group(run_view(overview.runs[0], time.time()), *map(cell, remarks(overview)))
