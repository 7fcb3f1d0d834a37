"""`dynammo-sim deploy`: the experiment of a simulation once more, among real sites on this machine."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer
from rich.progress import track
from rich.table import Table

from dynammo_core.configuration.config import load_config
from dynammo_core.support.errors import RunError
from dynammo_core.support.terminal import Terminal, parse_overrides, readable_errors
from simulations.bench.memory_watch import Held, held_by
from simulations.options import ConfigFile, Overrides

console = Terminal()
COMPARED = (
    "average_incremental_accuracy",
    "last_accuracy",
    "mean_class_recall",
    "forgetting",
    "worst_site_accuracy",
    "worst_site_mean_class_recall",
    "accuracy_after_tasks",
    "site_accuracies",
    "site_mean_class_recalls",
)
"""What must be the same to the last digit, whether sites are simulated or real."""


def deploy(
    config: ConfigFile,
    set_: Overrides = None,
    folder: Annotated[
        Path | None,
        typer.Option(help="Keep the consortium and the sites in this new folder.", show_default="a temporary one"),
    ] = None,
    compare: Annotated[bool, typer.Option(help="Run the simulation too, and require equal results.")] = True,
) -> None:
    """Rehearse a deployment on this machine: TLS, registered keys, a process for each site; then tear everything down.

    Each simulated site's share of the images is written out as a manifest, as a hospital would have it. The commands
    are those of the operator (dynammo-server) and of the engineers (dynammo-site).
    """
    with readable_errors(), _folder(folder) as place:
        from dynammo_core.experiment import Experiment
        from server.watch.progress import final_table
        from simulations.rehearsal.deployment import hospital_names

        experiment = Experiment(load_config(config, parse_overrides(set_ or [])))
        experiment.check()
        names = hospital_names(experiment.config.federation.sites)
        run, began, loaded = _run_deployed(experiment, names, place)
        deployed = _summary(run)
        console.print(final_table(deployed, names))
        if folder is not None:
            console.print(f"Everything is in {folder}; report: {run / 'report.html'}", soft_wrap=True, markup=False)
        if compare:
            simulated = _simulated(experiment, place)
            console.print(rounds_table(_events(run), _events(simulated), began))
            console.print(
                f"The server's process whose copies are ServerApps holds {loaded.resident / 1e6:.0f} MB; "
                f"{loaded.proportional / 1e6:.0f} if what several processes map is shared out, "
                f"{loaded.anonymous / 1e6:.0f} of them of no file.",
                soft_wrap=True,
            )
            _compare(deployed, _summary(simulated))


def rounds_table(deployed: list[dict[str, Any]], simulated: list[dict[str, Any]], began: float) -> Table:
    """Return a table of the seconds of each kind of round in both runs, with medians and what deploying costs.

    Args:
        deployed: the events of the deployed run.
        simulated: the events of the same run in one process.
        began: when the operator's command was given, in unix seconds.
    """
    finished = [[event for event in events if event["event"] == "step_finished"] for events in (deployed, simulated)]
    seconds: dict[str, list[tuple[float, float]]] = {}
    for one, other in zip(*finished, strict=True):
        seconds.setdefault(one["stage"], []).append((one["seconds"], other["seconds"]))
    seconds["all"] = [pair for pairs in seconds.values() for pair in pairs]
    table = Table("seconds a round, median", "rounds", "deployed", "simulated", "more")
    for stage, pairs in seconds.items():
        middle = (median(column) for column in (*zip(*pairs, strict=True), [one - other for one, other in pairs]))
        table.add_row(stage, str(len(pairs)), *(f"{value:.2f}" for value in middle))
    whole = [events[-1]["time"] - start for events, start in ((deployed, began), (simulated, simulated[0]["time"]))]
    table.add_section()
    table.add_row("the whole run", "", *(f"{value:.1f}" for value in (*whole, whole[0] - whole[1])))
    asked = next(event["time"] for event in deployed if event["event"] == "step_started")
    table.add_row("until the first round", "", f"{asked - began:.1f}")
    return table


def _events(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "events.jsonl").read_text(encoding="utf-8").splitlines()]


def _run_deployed(experiment: Any, names: list[str], place: Path) -> tuple[Path, float, Held]:
    """Return the run directory, when it was submitted, in unix seconds, and what the server's loaded process holds."""
    from server.consortium.launch import follow
    from server.run_directory.directory import EVENTS
    from server.run_directory.event_tail import EventTail
    from server.watch.progress import ProgressView
    from simulations.rehearsal.deployment import deployment

    with deployment(place, experiment, names) as consortium:
        for _ in track(consortium.prepare_sites(), "Writing the sites' images and keys", len(names), console=console):
            pass
        with console.status("Starting the SuperLink, registering and starting the sites"):
            consortium.open()
            config = consortium.config()
            consortium.approve(config)
            consortium.settle()
            began = time.time()
            run = consortium.run(config)
        with ProgressView() as view:
            follow(consortium.server, run, EventTail(run / EVENTS, from_end=False), view.update)
        loaded = held_by(consortium.loaded())
    return run, began, loaded


def _simulated(experiment: Any, place: Path) -> Path:
    from server.watch.progress import ProgressView
    from simulations.engines.engines import run_local

    with ProgressView() as view:
        return run_local(experiment.config, place / "simulation", None, view.update)


def _compare(deployed: dict[str, Any], simulated: dict[str, Any]) -> None:
    """Print both results.

    Raises:
        RunError: they differ.
    """
    table = Table("", "deployed", "simulated")
    for key in COMPARED:
        table.add_row(key.replace("_", " "), str(deployed[key]), str(simulated[key]))
    console.print(table)
    differing = [key for key in COMPARED if deployed[key] != simulated[key]]
    if differing:
        raise RunError(f"the deployed run differs from the simulated one in {', '.join(differing)}")
    console.print("The deployed run equals the simulated one.")


def _summary(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "summary.json").read_text(encoding="utf-8")))


@contextmanager
def _folder(chosen: Path | None) -> Iterator[Path]:
    if chosen is not None:
        if chosen.exists() and any(chosen.iterdir()):
            raise RunError(
                f"the folder {chosen} is not empty", accepted="a new folder, since a rehearsal overwrites nothing"
            )
        chosen.mkdir(parents=True, exist_ok=True)
        yield chosen.absolute()
    else:
        with tempfile.TemporaryDirectory(prefix="dynammo-deploy-") as temporary:
            yield Path(temporary)
