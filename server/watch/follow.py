"""Start a run among sites from a terminal and watch it there; Ctrl-C stops watching, not the run."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import typer

from dynammo_core.configuration.config import Config
from dynammo_core.support.terminal import Terminal
from server.consortium.launch import follow, launch, operator_command
from server.consortium.settings import ServerSettings
from server.run_directory.directory import EVENTS, free_place, run_place
from server.run_directory.event_tail import EventTail
from server.watch.progress import ProgressView, final_table


def launch_and_follow(
    settings: ServerSettings,
    config: Config[Any],
    *,
    resume: Path | None,
    accept_new_code: bool = False,
    track: Iterable[str] = (),
    detach: bool,
    console: Terminal,
) -> None:
    """Submit an experiment and show its progress, then its results.

    Raises:
        DynammoError: it cannot start, or it fails.
    """
    aside = free_place(run_place(settings.runs, config, resume))
    before = EventTail(resume / EVENTS, from_end=True) if resume else None
    directory = launch(settings, config, resume=resume, accept_new_code=accept_new_code, track=track)
    if aside.exists():
        console.say(f"The run of this experiment that was there is now {aside}")
    console.say(f"Run directory: {directory}")
    if detach:
        return
    try:
        with ProgressView() as view:
            follow(settings, directory, before or EventTail(directory / EVENTS, from_end=False), view.update)
    except KeyboardInterrupt:
        watch, stop = operator_command("status", directory), operator_command("stop", directory)
        console.say(f"The run continues. Watch it with: {watch}; stop it with: {stop}")
        raise typer.Exit(130) from None
    summary = json.loads((directory / "summary.json").read_text(encoding="utf-8"))
    console.print(final_table(summary, config.federation.site_names or ()))
    console.say(f"Report: {directory / 'report.html'}")
