"""How many images a second a device carries through each stage, beside a bare loop and the device's own limit."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from client.hospital.site_opening import simulated_site
from client.steps.actions import answer
from client.steps.assignment import start_level
from dynammo_core.code_identity import code_hash
from dynammo_core.configuration.config import Config
from dynammo_core.data.samples import Samples
from dynammo_core.data.transforms import to_input
from dynammo_core.experiment import Experiment
from dynammo_core.models.backbones import build_backbone
from dynammo_core.models.folding import fold_batch_norm
from dynammo_core.models.incremental_model import IncrementalModel
from dynammo_core.models.names import Level, matching, travelling_names
from dynammo_core.plan import Fit, LossContext, Step
from dynammo_core.scoring.cost import deployed_after
from dynammo_core.scoring.evaluation import BATCH, embed_samples
from dynammo_core.training import train_only
from dynammo_core.wire.protocol import Instruction, names_up

EVALUATE = "evaluate"
REPEATS = 20
PRODUCTS = 5
CLASSES = 2


@dataclass(frozen=True)
class Rate:
    """The speed of one stage.

    Attributes:
        stage: its name.
        precision: of the networks, `compute.precision`.
        batch: images per batch.
        ours: images a second of the step that a site does, from the instruction to the report.
        bare: images a second of a loop that does nothing but learn, its inputs at hand on the device.
        teraflops: 10^12 floating-point operations a second that `ours` amounts to.
    """

    stage: str
    precision: str
    batch: int
    ours: float
    bare: float
    teraflops: float


def matrix_teraflops(device: torch.device, kind: torch.dtype, side: int) -> float:
    """Measure the 10^12 floating-point operations a second of the product of two square matrices of a type."""
    one = torch.ones(side, side, dtype=kind, device=device)
    taken = seconds(lambda: [one @ one for _ in range(PRODUCTS)], device)
    return PRODUCTS * 2 * side**3 / taken / 1e12


def stage_rates(config: Config[Any], batch: int) -> Iterator[Rate]:
    """Yield the speed of each training stage of the first task at one site, and that of its evaluation."""
    experiment = Experiment(_with_batch(config, batch))
    experiment.use_torch()
    for step in experiment.steps:
        if step.task == 0 and step.round == 0 and isinstance(step.stage, Fit):
            yield _fit_rate(experiment, step, step.stage)
    yield _evaluation_rate(experiment)


def milliseconds_of_one(config: Config[Any]) -> float:
    """Return how long the deployed network, its batch norm folded, takes for one image."""
    experiment = Experiment(config)
    experiment.use_torch()
    size = config.data.image_size
    backbone = build_backbone(config.backbone, config.seed, config.data.image_size)
    deployed = deployed_after(1, config.method, backbone, CLASSES)
    fold_batch_norm(deployed.model.extractor, torch.rand(2, 3, size, size))
    deployed = deployed.to(experiment.device).to(memory_format=torch.channels_last)
    image = torch.rand(1, 3, size, size, device=experiment.device).contiguous(memory_format=torch.channels_last)

    def ask() -> None:
        with torch.no_grad(), experiment.autocast():
            deployed(image)

    return 1e3 * min(seconds(ask, experiment.device) for _ in range(REPEATS))


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of a second call of `work`, until the device has done all that it asks for.

    On the CPU they are the processor's, which other programs cannot lengthen.
    """
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    for _ in range(2):
        wait(device)
        started = clock()
        work()
        wait(device)
        taken = clock() - started
    return taken


def wait(device: torch.device) -> None:
    """Wait until a device has done all that it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _with_batch(config: Config[Any], batch: int) -> Config[Any]:
    """Return the configuration with that batch size in all training stages of its method."""
    stages = {
        name: stage.model_copy(update={"batch_size": batch})
        for name, stage in config.method
        if hasattr(stage, "batch_size")
    }
    return config.model_copy(update={"method": config.method.model_copy(update=stages)})


def _fit_rate(experiment: Experiment, step: Step, stage: Fit) -> Rate:
    config, device = experiment.config, experiment.device
    model = experiment.build_model(step.task)
    state = model.state_dict()
    sent = {name: state[name] for name in matching(travelling_names(model), stage.down)}
    with TemporaryDirectory(prefix="dynammo-gpu-") as folder:
        site = simulated_site(experiment, 0, Path(folder), "bench")
        text = config.canonical_json()
        instruction = Instruction(text, code_hash(config), "bench", step.index, 0, folder, sent)
        samples = stage.learns_from(site.rehearsal(step.task))
        ours = seconds(lambda: answer(instruction, site), device)
    loop = BareLoop(experiment, step, stage, samples)
    bare = seconds(loop, device)
    shown = stage.optimisation.epochs * len(samples)
    flops = loop.flops_of_an_image()
    batch = stage.optimisation.batch_size
    return Rate(stage.name, config.compute.precision, batch, shown / ours, shown / bare, flops * shown / ours / 1e12)


def _evaluation_rate(experiment: Experiment) -> Rate:
    config, device = experiment.config, experiment.device
    with TemporaryDirectory(prefix="dynammo-gpu-") as folder:
        site = simulated_site(experiment, 0, Path(folder), "bench")
        samples = site.train_images(experiment.stream.classes(0))
    model = experiment.build_model(0).eval().to(device)
    normalised = to_input(samples.images[:], config.normalisation, device)

    def ours() -> None:
        with experiment.autocast():
            embed_samples(model, samples, config.normalisation, device)

    def bare() -> None:
        with torch.no_grad(), experiment.autocast():
            for images in torch.split(normalised, BATCH):
                model.extractor(images)

    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model.extractor(normalised[:2])
    one, other = (len(samples) / seconds(work, device) for work in (ours, bare))
    teraflops = counter.get_total_flops() / 2 * one / 1e12
    return Rate(EVALUATE, config.compute.precision, BATCH, one, other, teraflops)


class BareLoop:
    """Gradient descent as short as it can be written, on inputs that stand on the device as the network takes them."""

    def __init__(self, experiment: Experiment, step: Step, stage: Fit, samples: Samples) -> None:
        config, device = experiment.config, experiment.device
        self._how, self._loss, self._autocast = stage.optimisation, stage.loss, experiment.autocast
        self._model: IncrementalModel = experiment.build_model(step.task).to(device)
        level: Level = start_level(stage.inputs, config.data.augmentation)
        with torch.no_grad():
            images = to_input(samples.images[:], config.normalisation, device)
            embed = self._model.eval().extractor.embed
            parts = [embed(part, start="images", end=level) for part in torch.split(images, BATCH)]
        self._inputs, self._labels = torch.cat(parts), samples.labels.to(device)
        self._parameters = train_only(self._model, set(names_up(self._model, stage)))
        self._context = LossContext(step.task, level)

    def __call__(self) -> None:
        """Learn for the epochs of one round."""
        optimizer = torch.optim.SGD(
            self._parameters, lr=0.01, momentum=0.9, fused=True if self._inputs.is_cuda else None
        )
        for _ in range(self._how.epochs):
            order = torch.randperm(len(self._inputs), device=self._inputs.device)
            for index in torch.split(order, self._how.batch_size):
                if len(index) > 1:
                    optimizer.zero_grad(set_to_none=True)
                    self._value(self._inputs[index], self._labels[index]).backward()  # type: ignore[no-untyped-call]
                    optimizer.step()

    def flops_of_an_image(self) -> float:
        """Return the floating-point operations that learning from one image takes."""
        counter = FlopCounterMode(display=False)
        with counter:
            self._value(self._inputs[:2], self._labels[:2]).backward()  # type: ignore[no-untyped-call]
        return counter.get_total_flops() / 2

    def _value(self, inputs: Tensor, labels: Tensor) -> Tensor:
        with self._autocast():
            return self._loss(self._model, inputs, labels, self._context)
