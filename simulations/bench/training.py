"""`dynammo-sim bench training`: how many images a second a site learns, beside a plain loop over the same network."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from dynammo_core.support.terminal import Terminal, parse_overrides, readable_errors
from simulations.bench.inference import PASS_PER_TASK
from simulations.options import ConfigFile, Overrides

if TYPE_CHECKING:
    from dynammo_core.experiment import Experiment
    from dynammo_core.plan import Fit, Step

console = Terminal()


def training(
    config: ConfigFile,
    repeats: Annotated[int, typer.Option(min=1, help="Number of measurements of each; the best one counts.")] = 3,
    sequence: Annotated[
        bool, typer.Option(help=f"Run all tasks too, with this method and with {PASS_PER_TASK}; takes minutes.")
    ] = True,
    unkept: Annotated[
        bool, typer.Option("--unkept", help="Run all tasks without cached features as well; takes longer.")
    ] = False,
    set_: Overrides = None,
) -> None:
    """Time each training stage of the first task at one site, against a plain loop without cached features.

    The plain loop does the same epochs on the same images, and runs the whole network on each. Both take turns; read
    the ratios. A site's step loads its weights and checks its answer; the plain loop does not.
    """
    with readable_errors():
        from dynammo_core.configuration.config import load_config
        from dynammo_core.experiment import Experiment
        from dynammo_core.plan import Fit

        settings = load_config(config, {**parse_overrides(set_ or []), "federation.sites": 1})
        experiment = Experiment(settings)
        experiment.use_torch()
        table = Table(
            "stage",
            "epochs",
            "images",
            "images/s",
            "plain loop",
            "ratio",
            "of later rounds",
            "of real sites' later rounds",
        )
        for step in experiment.steps:
            if step.task or step.round or not isinstance(step.stage, Fit):
                continue
            images, first, later, from_disk, plain = stage_seconds(experiment, step, step.stage, repeats)
            epochs = step.stage.optimisation.epochs
            rates = (epochs * images / first, epochs * images / plain)
            numbers = (str(epochs), str(images), *(f"{rate:.0f}" for rate in rates))
            ratios = (f"{plain / seconds:.2f}" for seconds in (first, later, from_disk))
            table.add_row(step.stage.name, *numbers, *ratios)
        console.print(table)
        if sequence:
            console.print(_sequences(settings, (settings.method.name, PASS_PER_TASK), unkept))


def stage_seconds(
    experiment: Experiment, step: Step, stage: Fit, repeats: int
) -> tuple[int, float, float, float, float]:
    """Return the number of images of a stage, and the best seconds of one round.

    Of its first round, of a later one, of a later one at a real site, whose processes find features encrypted on its
    disk, and of the plain loop.
    """
    from client.hospital.site_opening import simulated_site
    from client.state.feature_files import FeatureFiles
    from client.steps.actions import answer
    from dynammo_core.code_identity import code_hash
    from dynammo_core.models.names import matching, travelling_names
    from dynammo_core.wire.protocol import Instruction
    from simulations.bench.plain_loop import plain_round

    model = experiment.build_model(step.task)
    state = model.state_dict()
    sent = {name: state[name] for name in matching(travelling_names(model), step.stage.down)}
    with tempfile.TemporaryDirectory(prefix="dynammo-bench-") as folder:
        site = simulated_site(experiment, 0, Path(folder), "bench")
        text = experiment.config.canonical_json()
        instruction = Instruction(text, code_hash(experiment.config), "bench", step.index, 0, folder, sent)
        samples = stage.learns_from(site.rehearsal(step.task))
        files = FeatureFiles(Path(folder), 2**34, run="bench", site="bench", key=bytes(range(32)))
        real = replace(site, features=files)
        first, later, from_disk, plain = [], [], [], []
        for _ in range(repeats):
            _forget(experiment)
            first.append(_seconds(lambda: answer(instruction, site)))
            later.append(_seconds(lambda: answer(instruction, site)))
            _forget(experiment)
            answer(instruction, real)
            _forget(experiment)
            from_disk.append(_seconds(lambda: answer(instruction, real)))
            plain.append(plain_round(experiment, step, [samples]))
    return len(samples), min(first), min(later), min(from_disk), min(plain)


def _forget(experiment: Experiment) -> None:
    """Forget kept features, as a process does that sees the images for the first time."""
    experiment.__dict__.pop("feature_cache", None)


def _sequences(settings: Any, methods: Sequence[str], unkept: bool) -> Table:
    """Time all tasks by each method, with and perhaps without keeping features, beside the first."""
    table = Table("all tasks by", "features", "seconds", "times the first", "last %")
    first = 0.0
    for kept in (True, False) if unkept else (True,):
        for method in methods:
            seconds, last = _sequence(settings, method, kept)
            first = first or seconds
            words = "kept" if kept else "not kept"
            table.add_row(method, words, f"{seconds:.1f}", f"{seconds / first:.2f}", f"{last:.1f}")
    return table


def _sequence(settings: Any, method: str, kept: bool) -> tuple[float, float]:
    """Run all tasks in this process; return seconds and the last accuracy."""
    from dynammo_core.configuration.config import resolve
    from server.watch.progress import ProgressView
    from simulations.engines.engines import run_local

    data = settings.model_dump(mode="json")
    shared = {"adapt", "balance", "alpha", "padding"} & set(data["method"])
    data["method"] = {"name": method, **{key: data["method"][key] for key in shared}}
    if not kept:
        data["compute"]["feature_megabytes"] = 0
    with tempfile.TemporaryDirectory(prefix="dynammo-bench-") as folder, ProgressView() as view:
        taken: list[Path] = []
        seconds = _seconds(
            lambda: taken.append(run_local(resolve(data, "the bench", {}), Path(folder), None, view.update))
        )
        summary = json.loads((taken[0] / "summary.json").read_text(encoding="utf-8"))
    return seconds, summary["last_accuracy"]


def _seconds(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started
