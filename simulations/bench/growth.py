"""What a run takes as one thing about it grows: real runs of a small network on pictures of numbers, and exponents."""

from __future__ import annotations

import csv
import multiprocessing
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Message
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_digits

from client.app import app
from dynammo_core.configuration.config import Config, Scalar, resolve
from dynammo_core.deployed.model_files import WEIGHTS
from dynammo_core.memory.store import MEMORY_FILE
from dynammo_core.support.errors import RunError
from dynammo_core.support.seeding import derive_seed
from dynammo_core.wire.protocol import tensor_bytes
from server.run.run import run_experiment
from server.run_directory.directory import Event
from simulations.bench.memory_watch import forget_peak, own_memory
from simulations.comparisons.process_pool import follow_parent
from simulations.engines.local_grid import LocalGrid

BASE: Mapping[str, Any] = MappingProxyType(
    {
        "name": "growth",
        "seed": 1,
        "backbone": {"name": "small_cnn", "weights": "random"},
        "method": {
            "name": "dynammo",
            "alpha": 0.5,
            "adapt": {"rounds": 1, "epochs": 1, "learning_rate": 0.02},
            "balance": {"rounds": 1, "epochs": 1, "optimizer": "adam", "learning_rate": 0.003, "weight_decay": 0.0},
        },
        "compute": {"device": "cpu"},
    }
)

QUANTITIES: Mapping[str, str] = MappingProxyType(
    {
        "seconds": "processor seconds per round, all sites and the server",
        "memory": "peak memory of the process, beyond that before the run",
        "up": "tensors up, per site and round",
        "down": "tensors down, per site and round",
        "messages": "whole messages both ways, per site and round",
        "checkpoint": "checkpoint at the server",
        "exemplars": "replay memory on a site's disk",
        "network": "deployed backbone and adapters",
        "heads": "deployed heads",
    }
)
"""Words for each quantity that is measured; rounds are those of the last task."""

Measured = Mapping[str, float]
"""By the name of a quantity: seconds, or bytes."""


@dataclass(frozen=True)
class Shape:
    """How large a run is.

    Attributes:
        tasks: T.
        classes: of each task.
        images: of each class for training; a tenth as many more, at least one, for testing.
        sites: among which they are dealt out.
        exemplars: of all sites together.
    """

    tasks: int = 1
    classes: int = 2
    images: int = 60
    sites: int = 2
    exemplars: int = 80

    def config(self, folder: Path, overrides: Mapping[str, Scalar]) -> Config[Any]:
        """Return the experiment on the images that `write_numbers` put into a folder."""
        own = {
            "data": {"dataset": "manifest", "root": str(folder), "image_size": 16},
            "tasks": {"sizes": self.classes},
            "federation": {"sites": self.sites},
            "memory": {"exemplars": self.exemplars},
        }
        return resolve(deepcopy({**BASE, **own}), "the bench", overrides)


@dataclass(frozen=True)
class Axis:
    """Something that grows: its words, the values to measure at, the limits of these, and the run at each."""

    words: str
    values: tuple[int, ...]
    limits: tuple[int, int]
    shape: Callable[[int], Shape]


SMALLEST = Shape(images=4, sites=1, exemplars=2)
AXES: Mapping[str, Axis] = MappingProxyType(
    {
        "tasks": Axis(
            "tasks of 2 classes with 60 images each, 2 sites, 80 exemplars in all",
            (1, 2, 5, 10, 20),
            (1, 500),
            lambda n: Shape(tasks=n),
        ),
        "sites": Axis(
            "sites with 4 images and 2 exemplars each, one task of 2 classes",
            (1, 10, 100, 1000),
            (1, 10_000),
            lambda n: Shape(images=2 * n, sites=n, exemplars=2 * n),
        ),
        "classes": Axis(
            "classes in 2 tasks, with 2,000 images and as many exemplars in all, 2 sites",
            (10, 30, 100, 300, 1000),
            (2, 1000),
            lambda n: Shape(tasks=2, classes=n // 2, images=2000 // n, exemplars=2000),
        ),
        "exemplars": Axis(
            "exemplars of 4 classes with 640 images each in 2 tasks, 1 site",
            (40, 160, 640, 2560),
            (4, 2560),
            lambda n: Shape(tasks=2, images=640, sites=1, exemplars=n),
        ),
    }
)


def write_numbers(folder: Path, classes: int, images: int) -> None:
    """Write pictures of the numbers from 0 on, in three handwritten digits each, no two alike: 8 x 24 pixels.

    The folder gets a `manifest.csv`; per class there are as many images for training as `images` says, and a tenth as
    many, at least one, for tests.
    """
    digits = load_digits()
    drawn = [(digits.images[digits.target == digit] * 15).astype(np.uint8) for digit in range(10)]
    folder.mkdir(parents=True)
    rows = [["path", "label", "split"]]
    for number in range(classes):
        name = f"{number:03d}"
        hundreds, tens, ones = (drawn[int(digit)] for digit in name)
        rng = np.random.default_rng(derive_seed(1, "numbers", number))
        shape = (len(hundreds), len(tens), len(ones))
        chosen = rng.choice(int(np.prod(shape)), images + max(images // 10, 1), replace=False)
        for place, (one, two, three) in enumerate(np.stack(np.unravel_index(chosen, shape), axis=1).tolist()):
            file = f"{name}-{place}.png"
            Image.fromarray(np.hstack([hundreds[one], tens[two], ones[three]])).save(folder / file)
            rows.append([file, name, "train" if place < images else "test"])
    with (folder / "manifest.csv").open("w", newline="") as text:
        csv.writer(text).writerows(rows)


def measure(shape: Shape, overrides: Mapping[str, Scalar]) -> Measured:
    """Run an experiment of this shape in this process, after a small one that warms it up; return what it takes.

    Memory is that of this run only in a process that has not run anything larger before.
    """
    with TemporaryDirectory(prefix="dynammo-growth-") as place:
        _run(SMALLEST, overrides, Path(place) / "first")
        forget_peak()
        before = own_memory().now
        meter, run = _run(shape, overrides, Path(place) / "run")
        peak = own_memory().peak
        deployed = load_file(run / WEIGHTS)
        heads = {name: tensor for name, tensor in deployed.items() if name.startswith("heads.")}
        memories = [file.stat().st_size for file in (run / "sites").glob(f"*/{MEMORY_FILE}")]
        return {
            **meter.measured(shape.sites),
            "memory": peak - before,
            "checkpoint": (run / "checkpoints" / "latest.safetensors").stat().st_size,
            "exemplars": sum(memories) / shape.sites,
            "network": tensor_bytes(deployed) - tensor_bytes(heads),
            "heads": tensor_bytes(heads),
        }


def measured_apart(shape: Shape, overrides: Mapping[str, Scalar]) -> Measured:
    """Do what `measure` does in a process of its own.

    Raises:
        DynammoError: the run cannot go on, or its process was killed.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # what takes longest in a fresh process is importing
    with ProcessPoolExecutor(1, context, follow_parent) as pool:
        try:
            return pool.submit(measure, shape, overrides).result()
        except BrokenProcessPool as error:
            what = f"the process of {shape} was killed, most likely because memory ran out"
            raise RunError(what, remedy="Leave out the largest values") from error


class Meter(LocalGrid):
    """A grid that weighs messages and times rounds; those of the last task count."""

    def __init__(self, sites: int) -> None:
        super().__init__(app, sites, run_config={})
        self._task, self._rounds, self._clock = -1, 0, 0.0
        self._sums: dict[str, float] = {}

    def listen(self, event: Event) -> None:
        """Take in an event of the run: a round ends when the next begins, with all that is written in between."""
        if event["event"] == "step_started" and event["task"] != self._task:
            self._task, self._rounds, self._clock = event["task"], 0, time.process_time()
            self._sums = dict.fromkeys(("up", "down", "messages"), 0.0)
        elif event["event"] == "step_finished":
            self._rounds += 1
            self._sums["up"] += event["bytes_up"]
            self._sums["down"] += event["bytes_down"]
        elif event["event"] == "run_finished":
            self._clock = time.process_time() - self._clock

    def measured(self, sites: int) -> Measured:
        """Return seconds per round, and bytes per site and round, of the finished run."""
        bytes_ = {name: total / self._rounds / sites for name, total in self._sums.items()}
        return {"seconds": self._clock / self._rounds, **bytes_}

    def _answer(self, message: Message) -> Message:
        reply = super()._answer(message)
        weighed = [message, reply] if not reply.has_error() else [message]
        self._sums["messages"] += sum(map(_weight, weighed))
        return reply


def _weight(message: Message) -> int:
    """Count the bytes of a message as Flower does, whose count fails at an empty list or text."""
    counted = 0
    for record in message.content.values():
        if isinstance(record, ConfigRecord):
            record = ConfigRecord({name: value for name, value in record.items() if value not in ([], "")})
        counted += record.count_bytes()
    return counted


def _run(shape: Shape, overrides: Mapping[str, Scalar], folder: Path) -> tuple[Meter, Path]:
    write_numbers(folder / "images", shape.tasks * shape.classes, shape.images)
    meter = Meter(shape.sites)
    config = shape.config(folder / "images", overrides)
    return meter, run_experiment(meter, config, runs=folder, resume=None, listeners=[meter.listen]).path


@dataclass(frozen=True)
class Growth:
    """How a quantity grows: its value at each point, and y ~ x^exponent over all points and over the last two.

    If a constant part hides the growth at first, the second exponent is the larger, and nearer to what becomes of it.
    """

    values: tuple[float, ...]
    exponent: float | None
    last: float | None


def growths(points: Sequence[int], measured: Sequence[Measured]) -> dict[str, Growth]:
    """Return the growth of every quantity along an axis."""
    found = {}
    for name in QUANTITIES:
        values = [one[name] for one in measured]
        found[name] = Growth(tuple(values), exponent(points, values), exponent(points[-2:], values[-2:]))
    return found


def exponent(points: Sequence[int], values: Sequence[float]) -> float | None:
    """Return the slope of log(values) on log(points) by least squares; None for one point, or values down to 0."""
    if min(values) <= 0 or len(set(points)) < 2:
        return None
    x, y = np.log(np.array(points, dtype=np.float64)), np.log(np.array(values, dtype=np.float64))
    x -= x.mean()
    return float(np.round(x @ (y - y.mean()) / (x @ x), 6) + 0.0)
