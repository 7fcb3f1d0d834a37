"""The ServerApp, which reads the run's configuration and hands over to `run`."""

from __future__ import annotations

import json
import os
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from dynammo_core.configuration.config import Scalar, leaf_keys, load_config

app = ServerApp()
APP_ROOT = Path(__file__).resolve().parent.parent


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the experiment that the run config names; an empty value there means "as the YAML file says"."""
    from dynammo_core.experiment import Experiment  # all this takes seconds that `flwr` itself need not wait for
    from dynammo_core.support.terminal import Terminal
    from server.run.run import run_and_report
    from server.run_directory.directory import run_place
    from server.run_directory.flower_run import noting
    from server.trackers.tracking import tracking
    from server.watch.progress import ProgressView, final_table

    values = context.run_config
    if announce := str(values.get("announce", "")):
        from server.jobs.announce import ask_all

        ask_all(grid, Path(announce))
        return
    if statistics := str(values.get("statistics", "")):
        from server.jobs.announce import ask_for_statistics

        ask_for_statistics(grid, Path(statistics))
        return
    overrides: dict[str, Scalar] = {key: values[key] for key in leaf_keys() if values.get(key, "") != ""}
    config = load_config(APP_ROOT / str(values["config"]), overrides)
    # A SuperLink runs this in a folder of its own; `.venv/bin/flwr` says where the user's checkout is.
    base = Path(os.environ.get("DYNAMMO_CHECKOUT", Path.cwd()))
    resume = str(values.get("resume", ""))
    if evaluate := str(values.get("evaluate", "")):
        from server.jobs.evaluate import evaluate_run

        evaluate_run(grid, config, Path(resume), Path(evaluate))
        return
    if forget := str(values.get("forget", "")):
        from server.jobs.forget import forget_run

        forget_run(grid, config, Path(resume), Path(forget))
        return
    runs, resumed = base / str(values.get("runs") or "runs"), base / resume if resume else None
    track, place = str(values.get("track", "")).split(), run_place(runs, config, resumed)
    with (
        ProgressView() as view,
        tracking(track, config, place, view.update) as listener,
        noting(place, context.run_id, str(values.get("consortium", ""))) as note,
    ):
        directory = run_and_report(
            grid,
            config,
            runs=runs,
            resume=resumed,
            accept_new_code=str(values.get("accept-new-code", "")) == "yes",
            listeners=[note, listener],  # a tracker may take a minute to begin
        )
    console = Terminal(width=100)
    summary = json.loads((directory.path / "summary.json").read_text(encoding="utf-8"))
    console.print(final_table(summary, Experiment(config).site_names))
    console.say(f"Run directory: {directory.path}")
