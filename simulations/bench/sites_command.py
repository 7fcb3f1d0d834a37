"""`dynammo-sim bench sites`: what a federation of many simulated sites takes, beside a plain loop."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dynammo_core.support.errors import ConfigError, unknown_name
from dynammo_core.support.terminal import Terminal, parse_overrides, readable_errors
from simulations.options import ConfigFile, Overrides

if TYPE_CHECKING:
    from dynammo_core.experiment import Experiment

console = Terminal()


def sites(
    config: ConfigFile,
    count: Annotated[int, typer.Option(min=1, help="Number of simulated sites.")] = 100,
    engine: Annotated[str, typer.Option(help="Choose local or flower.")] = "flower",
    set_: Overrides = None,
) -> None:
    """Measure the peak memory of a federation of many simulated sites, and the time of a round.

    With the local engine, each training round of the first task takes turns with a plain loop over the same batches:
    the ratio of their processor seconds says what the federation costs.
    """
    with readable_errors():
        from dynammo_core.configuration.config import load_config
        from dynammo_core.experiment import experiment_from_json
        from server.watch.progress import ProgressView
        from simulations.bench.memory_watch import peak_memory
        from simulations.engines.engines import ENGINES

        if engine not in ENGINES:
            raise ConfigError(unknown_name("engine", engine, ENGINES), accepted=", ".join(ENGINES))
        overrides = {**parse_overrides(set_ or []), "federation.sites": count}
        settings = load_config(config, overrides)
        turns = Turns(experiment_from_json(settings.canonical_json()), engine == "local")
        with tempfile.TemporaryDirectory(prefix="dynammo-sites-") as folder:
            turns.folder = Path(folder) / settings.run_name / "sites"
            with peak_memory() as peak, ProgressView() as view:

                def listen(event: dict[str, Any]) -> None:
                    view.update(event)
                    turns.listen(event)

                run = ENGINES[engine](settings, Path(folder), None, listen)
            summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
        seconds, gigabytes = summary["seconds"] / summary["rounds"], peak.bytes / 1e9
        console.print(
            f"{count} sites, engine {engine}: {summary['rounds']} rounds, {seconds:.2f} s per round, "
            f"{gigabytes:.2f} GB at the peak, last accuracy {summary['last_accuracy']:.1f} %",
            highlight=False,
            soft_wrap=True,
        )
        if turns.loop:
            console.say(
                f"processor seconds of a training round: {statistics.median(turns.own):.2f}, of a plain loop over the "
                f"same batches {statistics.median(turns.loop):.2f}; ratio {turns.ratio:.2f}"
            )


class Turns:
    """Lets a plain loop take turns with the training rounds of the first task, and times both.

    Attributes:
        own: processor seconds of each of these rounds.
        loop: of the plain loop beside it.
        folder: of what the sites keep.
    """

    def __init__(self, experiment: Experiment, taking: bool) -> None:
        self.own: list[float] = []
        self.loop: list[float] = []
        self.folder = Path()
        self._experiment, self._taking = experiment, taking
        self._run, self._clock = "", 0.0

    @property
    def ratio(self) -> float:
        """Return how many times the loop's seconds the rounds took, the first of which warmed up; the median."""
        pairs = list(zip(self.own, self.loop, strict=True))
        return statistics.median(own / loop for own, loop in pairs[1:] or pairs)

    def listen(self, event: dict[str, Any]) -> None:
        """Take in an event of the run: before a training round, the loop has its turn."""
        if event["event"] == "run_started":
            self._run = event["run"]
        if not self._taking or event["event"] not in ("step_started", "step_finished") or not self._trains(event):
            return
        if event["event"] == "step_finished":
            self.own.append(time.process_time() - self._clock)
            return
        self._take_turn(event["step"])
        self._clock = time.process_time()

    def _trains(self, event: dict[str, Any]) -> bool:
        from dynammo_core.plan import Fit

        return event["task"] == 0 and isinstance(self._experiment.steps[event["step"]].stage, Fit)

    def _take_turn(self, index: int) -> None:
        from client.hospital.site_opening import simulated_site
        from dynammo_core.plan import Fit
        from simulations.bench.plain_loop import plain_round

        step = self._experiment.steps[index]
        assert isinstance(step.stage, Fit)
        opened = [
            simulated_site(self._experiment, site, self.folder, self._run)
            for site in range(self._experiment.config.federation.sites)
        ]
        sets = [step.stage.learns_from(site.rehearsal(step.task)) for site in opened]
        self.loop.append(plain_round(self._experiment, step, sets))
