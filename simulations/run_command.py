"""`dynammo-sim run`: one experiment in this process or on Flower's engine."""

from __future__ import annotations

import json
import shlex
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from dynammo_core.configuration.config import load_config
from dynammo_core.support.errors import ConfigError
from dynammo_core.support.terminal import Terminal, parse_overrides, readable_errors
from simulations.options import ConfigFile, Overrides, Track

console = Terminal()


def run(
    config: ConfigFile,
    engine: Annotated[
        str,
        typer.Option(
            help="Choose [bold]local[/], all sites in this process, or [bold]flower[/], the real engine by `flwr run`."
        ),
    ] = "local",
    set_: Overrides = None,
    track: Track = None,
    runs: Annotated[Path, typer.Option(help="Folder for run directories.")] = Path("runs"),
    resume: Annotated[
        Path | None,
        typer.Option(metavar="RUN_DIR", help="Continue this interrupted run.", show_default=False),
    ] = None,
    accept_new_code: Annotated[
        bool, typer.Option("--accept-new-code", help="Resume even if the code has changed; the run records it.")
    ] = False,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS", help="With --engine flower: run the sites on this Ray cluster.", show_default=False
        ),
    ] = None,
) -> None:
    """Run an experiment and leave a run directory with metrics, model and report.html."""
    with readable_errors():
        from dynammo_core.data.decoded.progress import listening
        from dynammo_core.experiment import Experiment
        from server.run_directory.directory import RunDirectory, run_place
        from server.trackers.tracking import tracking
        from server.watch.progress import ProgressView, final_table
        from simulations.engines.engines import find_engine, run_by_flower

        start = find_engine(engine)
        if ray is not None and start is not run_by_flower:
            raise ConfigError(
                f"--ray: the engine {engine!r} cannot run sites on other machines", accepted="--engine flower"
            )
        start = start if ray is None else partial(run_by_flower, ray=ray)
        experiment = load_config(config, parse_overrides(set_ or []))
        known = Experiment(experiment)
        for note in known.data_notes:
            console.say(note)
        view = ProgressView()
        try:
            with (
                tracking(track or (), experiment, run_place(runs, experiment, resume), view.update) as listener,
                view,
                listening(lambda decoding: view.update(decoding.event())),
            ):
                directory = start(experiment, runs, resume, listener, accept_new_code=accept_new_code)
        except KeyboardInterrupt:
            begun = runs / experiment.run_name if view.begun and resume is None else resume
            can_resume = begun is not None and RunDirectory(begun).can_resume
            words = ["dynammo-sim", "run", str(config), "--engine", engine, "--runs", str(runs)]
            words += ["--resume", str(begun)] if can_resume else []
            words += ["--accept-new-code"] if accept_new_code and can_resume else []
            words += ["--ray", ray] if ray is not None else []
            words += [word for pair in set_ or [] for word in ("--set", pair)]
            words += [word for name in track or [] for word in ("--track", name)]
            state = "Continue with" if can_resume else "No round was finished. Start again with"
            console.say(f"Stopped. {state}: {shlex.join(words)}")
            raise typer.Exit(130) from None
        console.print(final_table(json.loads((directory / "summary.json").read_text()), known.site_names))
        console.print(f"Run directory: {directory}\nReport: {directory / 'report.html'}", soft_wrap=True, markup=False)
