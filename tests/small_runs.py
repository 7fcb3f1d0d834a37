"""Experiments as small as they can be and still be real: digits at 16 pixels, a small random CNN, a second a run."""

from __future__ import annotations

import csv
import json
import pickle
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid
from PIL import Image
from sklearn.datasets import load_digits

from client.app import app
from client.hospital.site_opening import simulated_site
from client.steps.site import Site
from dynammo_core.code_identity import code_hash
from dynammo_core.configuration.config import Config, Scalar, resolve
from dynammo_core.experiment import Experiment, experiment_from_json
from dynammo_core.methods import METHODS
from dynammo_core.models.names import matching, travelling_names
from dynammo_core.plan import Step
from dynammo_core.wire.envelope import Parcel, encode_instruction
from dynammo_core.wire.protocol import Instruction
from server.run.run import run_experiment
from server.run_directory.directory import Listener, RunDirectory
from simulations.engines.local_grid import LocalGrid

if TYPE_CHECKING:
    import pytest

ALL_METHODS = sorted(METHODS)
SITES = 3
RUN = "small-0123456789abcdef"
# Two tasks of two classes, 20 training and 10 test images each; of these three sites one holds nothing of task 1.
SETTINGS: Mapping[str, Any] = {
    "name": "small",
    "seed": 1,
    "data": {"dataset": "digits", "image_size": 16, "train_per_class": 20, "test_per_class": 10},
    "tasks": {"sizes": [2, 2]},
    "federation": {"sites": SITES, "partition": "dirichlet", "alpha": 0.5},
    "backbone": {"name": "small_cnn", "weights": "random"},
    "memory": {"exemplars": 24},
    "compute": {"device": "cpu"},
}
ADAPTED = {
    "alpha": 0.5,
    "adapt": {"rounds": 1, "epochs": 2, "learning_rate": 0.02},
    "balance": {"rounds": 2, "epochs": 2, "optimizer": "adam", "learning_rate": 0.02, "weight_decay": 0.0},
}
TRAINED = {"train": {"rounds": 2, "epochs": 2, "learning_rate": 0.05}}


def small_settings(method: str = "dynammo") -> dict[str, Any]:
    """Plain data, as a YAML file would hold them."""
    stages = {**ADAPTED, **TRAINED}
    section = {key: stages[key] for key in METHODS[method].Params.model_fields if key in stages} | {"name": method}
    return deepcopy({**SETTINGS, "method": section})


def small_config(method: str = "dynammo", overrides: Mapping[str, Scalar] | None = None) -> Config[Any]:
    return resolve(small_settings(method), "small.yaml", overrides or {})


def run_small(
    config: Config[Any],
    runs: Path,
    *,
    resume: Path | None = None,
    accept_new_code: bool = False,
    grid: Grid | None = None,
    listeners: Iterable[Listener] = (),
) -> RunDirectory:
    """The whole road: server loop, messages, the real client app."""
    grid = grid or LocalGrid(app, nodes=config.federation.sites, run_config={})
    return run_experiment(grid, config, runs=runs, resume=resume, accept_new_code=accept_new_code, listeners=listeners)


def make_pages_small(patch: pytest.MonkeyPatch) -> None:
    """Let pages have coarse figures, and runs leave no page of their own."""
    patch.setattr("simulations.comparisons.process_pool.run_and_report", run_experiment)
    patch.setattr("server.report.plots.PIXELS_PER_INCH", 20)


@dataclass
class Outcome:
    """What must be the same in two runs that should be the same."""

    summary: dict[str, Any]
    accuracies: bytes
    confusions: bytes
    model: bytes

    @staticmethod
    def of(directory: Path) -> Outcome:
        summary = json.loads((directory / "summary.json").read_text())
        del summary["seconds"]  # a clock's, not the experiment's
        del summary["bytes_down"]  # a server that starts anew sends once more what the sites hold
        names = ("accuracy_matrix.csv", "confusion_matrix.csv", "model.safetensors")
        return Outcome(summary, *((directory / name).read_bytes() for name in names))


class Stopped(BaseException):
    """Ends a run like Ctrl-C does; it is no Exception, which something on the way may take for a failure of its own."""


class StopAt:
    """Stops the run that it listens to, at the `nth` event of a step."""

    def __init__(self, step: int, nth: int) -> None:
        self.step = step
        self.left = nth

    def __call__(self, event: dict[str, Any]) -> None:
        if event.get("step") == self.step:
            self.left -= 1
            if self.left == 0:
                raise Stopped


def events(directory: Path, kind: str | None = None) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (directory / "events.jsonl").read_text().splitlines()]
    return [line for line in lines if kind in (None, line["event"])]


@dataclass
class Wire:
    """The client app with a tap: keeps every instruction and every answer that passes."""

    handled: list[tuple[Message, Message]] = field(default_factory=list)

    def __call__(self, message: Message, context: Context) -> Message:
        reply = app(message, context)
        self.handled.append((message, reply))
        return reply


@dataclass
class FinishedRun:
    """A finished run's configuration and directory, and the file of all that its sites were asked and answered."""

    config: Config[Any]
    path: Path
    messages: Path

    @cached_property
    def handled(self) -> list[tuple[Message, Message]]:
        return list(pickle.loads(self.messages.read_bytes()))

    @property
    def experiment(self) -> Experiment:
        return experiment_from_json(self.config.canonical_json())

    @property
    def outcome(self) -> Outcome:
        return Outcome.of(self.path)

    @property
    def summary(self) -> dict[str, Any]:
        return dict(json.loads((self.path / "summary.json").read_text()))


def step_of(experiment: Experiment, task: int, stage: str, round_: int = 0) -> Step:
    return next(s for s in experiment.steps if (s.task, s.stage.name, s.round) == (task, stage, round_))


def small_site(experiment: Experiment, index: int, workspace: Path, run: str = RUN) -> Site:
    """The site that `instruction` speaks to."""
    return simulated_site(experiment, index, workspace, run)


def run_id(run: Path) -> str:
    """The unique name of a run, as its log tells it."""
    first = (run / "events.jsonl").read_text(encoding="utf-8").splitlines()[0]
    return str(json.loads(first)["run"])


def instruction(experiment: Experiment, step: Step, site: int, workspace: Path) -> Instruction:
    """What the server would send, with weights that nobody has trained yet."""
    model = experiment.build_model(step.task)
    state = model.state_dict()
    weights = {name: state[name].clone() for name in matching(travelling_names(model), step.stage.down)}
    return Instruction(
        experiment.config.canonical_json(), code_hash(experiment.config), RUN, step.index, site, str(workspace), weights
    )


def records(sent: Instruction, *, travelling: Iterable[str] | None = None) -> RecordDict:
    """An instruction in Flower's records; of its tensors those of these names travel, by default all."""
    return encode_instruction(sent, Parcel.of(sent.weights), travelling)


def write_hospitals(folder: Path, holdings: Mapping[str, Mapping[str, int]]) -> Path:
    """A manifest of real digits, by site, class and training images; a site has one test image of each of its classes.

    The images of a site do not depend on the other sites.
    """
    digits = load_digits()
    rows: list[list[str]] = []
    for site, held in sorted(holdings.items()):
        for label, count in sorted(held.items()):
            own = np.flatnonzero(digits.target == int(label))[ord(site[0]) % 8 :: 8]
            assert count < len(own)
            for position, index in enumerate(own[: count + 1].tolist()):
                name = f"{site}-{label}-{position}.png"
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray((digits.images[index] * 15).astype(np.uint8)).save(folder / name)
                rows.append([name, label, "test" if position == count else "train", site])
    with (folder / "manifest.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["path", "label", "split", "site"], *rows])
    return folder


def hospital_config(
    folder: Path, method: str, sites: int, overrides: Mapping[str, Scalar] | None = None
) -> Config[Any]:
    """The small experiment on the images of `write_hospitals`."""
    settings = small_settings(method)
    settings["data"] = {"dataset": "manifest", "root": str(folder), "image_size": 16}
    settings["federation"] = {"sites": sites, "partition": "natural"}
    return resolve(settings, "hospitals.yaml", overrides or {})


Finished = Callable[[str], FinishedRun]
