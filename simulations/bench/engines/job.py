"""One federated job for every engine: FedAvg of a small network, the same images, sites, rounds and batches.

`python -m simulations.bench.engines.job ENGINE CONFIG OUT` does it by one engine in a process of its own, and writes
the wall-clock seconds of each round as JSON.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from dynammo_core.configuration.config import load_config
from dynammo_core.data.loading import load_samples
from dynammo_core.data.samples import Samples
from dynammo_core.experiment import Experiment
from dynammo_core.models.incremental_model import IncrementalModel
from dynammo_core.plan import Fit, LossContext, Step
from dynammo_core.wire.protocol import names_up
from simulations.bench.plain_loop import plain_round, site_batches

APP = """
[project]
name = "plain-fedavg"
version = "1.0.0"
license = { file = "LICENSE" }
dependencies = ["flwr>=1.41"]
[tool.flwr.app]
publisher = "dynammo"
fab-format-version = 1
flwr-version-target = "1.42.0"
fab-include = ["plain_flower.py", "LICENSE"]
[tool.flwr.app.components]
serverapp = "plain_flower:server_app"
clientapp = "plain_flower:client_app"
[tool.flwr.app.config]
config = ""
out = ""
"""


@dataclass(frozen=True)
class Job:
    """FedAvg as a configuration describes it: the first stage of its first task, in which a network is trained."""

    config: Path

    @cached_property
    def experiment(self) -> Experiment:
        """Return the experiment."""
        experiment = Experiment(load_config(self.config))
        experiment.use_torch()
        return experiment

    @property
    def steps(self) -> list[Step]:
        """Return the rounds of training."""
        return [step for step in self.experiment.steps if step.task == 0 and isinstance(step.stage, Fit)]

    @cached_property
    def sites(self) -> list[Samples]:
        """Return the training images of each site."""
        data, side = self.experiment.dataset.train, self.experiment.config.data.image_size
        learnt = np.isin(data.labels, self.experiment.stream.classes(0))
        return [load_samples(data, own[learnt[own]], side) for own in self.experiment.partition.train]

    def names(self, model: IncrementalModel) -> list[str]:
        """Return the names of the tensors that are averaged."""
        return names_up(model, self.steps[0].stage)

    def learn(self, model: IncrementalModel, optimizer: torch.optim.Optimizer, step: Step, site: int) -> None:
        """Train a network on one site's images for one round."""
        assert isinstance(step.stage, Fit)
        for inputs, labels in site_batches(self.experiment, step, site, self.sites[site]):
            optimizer.zero_grad(set_to_none=True)
            step.stage.loss(model, inputs, labels, LossContext(step.task)).backward()  # type: ignore[no-untyped-call]
            optimizer.step()


def by_plain_loop(job: Job) -> list[float]:
    """Train in one loop over all batches, without any federation."""
    return [_seconds(lambda step=step: plain_round(job.experiment, step, job.sites)) for step in job.steps]  # type: ignore[misc]


def by_local(job: Job) -> list[float]:
    """Do the job by this project's local engine."""
    return _by_ours(job, "local")


def by_flower(job: Job) -> list[float]:
    """Do the job by this project's app under `flwr run`."""
    return _by_ours(job, "flower")


def by_plain_flower(job: Job) -> list[float]:
    """Do the job by a minimal Flower app under `flwr run`."""
    from simulations.engines.flower_engine import run_flower

    with tempfile.TemporaryDirectory(prefix="dynammo-plain-") as place:
        app, out = Path(place) / "app", Path(place) / "seconds.json"
        app.mkdir()
        (app / "pyproject.toml").write_text(APP)
        (app / "LICENSE").write_text("Apache-2.0\n")
        (app / "plain_flower.py").write_text(Path(__file__).with_name("plain_flower.py").read_text())
        run_flower(
            app,
            nodes=job.experiment.config.federation.sites,
            run_config={"config": str(job.config.resolve()), "out": str(out)},
            on_output=None,
            log_file=Path(place) / "flower.log",
        )
        seconds: list[float] = json.loads(out.read_text())
        return seconds


def by_pfl(job: Job) -> list[float]:
    """Do the job by pfl-research, which has to be installed where this runs."""
    from simulations.bench.engines.with_pfl import run_pfl

    return run_pfl(job)


ENGINES: Mapping[str, Callable[[Job], list[float]]] = {
    "loop": by_plain_loop,
    "local": by_local,
    "flower": by_flower,
    "plain-flower": by_plain_flower,
    "pfl": by_pfl,
}


def _by_ours(job: Job, engine: str) -> list[float]:
    from simulations.engines.engines import ENGINES as OURS

    with tempfile.TemporaryDirectory(prefix="dynammo-engines-") as place:
        run = OURS[engine](load_config(job.config), Path(place), None, lambda event: None)
        events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    trained = job.steps[0].stage.name
    rounds = [event for event in events if event["event"] == "step_finished" and event["stage"] == trained]
    return [event["seconds"] for event in rounds if event["task"] == 0]


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    engine, config, out = sys.argv[1:]
    Path(out).write_text(json.dumps(ENGINES[engine](Job(Path(config)))))
