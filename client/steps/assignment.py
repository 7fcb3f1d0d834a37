"""An assignment: one step of the plan for one site, with the models and the batches that the site works on."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from client.steps.own_statistics import deciding_names, with_own_statistics
from client.steps.site import Site
from dynammo_core.best_round import Check
from dynammo_core.data.decoded.stored_images import Images
from dynammo_core.data.feature_cache import fingerprint
from dynammo_core.data.samples import FEWEST_SAMPLES, Samples
from dynammo_core.data.transforms import augment, to_input
from dynammo_core.experiment import Experiment
from dynammo_core.methods.base import TEACHER_PREFIX
from dynammo_core.models.copies import tensors_in
from dynammo_core.models.incremental_model import IncrementalModel
from dynammo_core.models.names import Level, matching, travelling_names
from dynammo_core.plan import Batch, Fit, Stage, Step, Summarise
from dynammo_core.scoring.evaluation import BATCH, embed_samples
from dynammo_core.support.devices import fits, moved
from dynammo_core.support.errors import ProtocolError
from dynammo_core.support.seeding import derive_seed, seeded_generator
from dynammo_core.training import shuffled
from dynammo_core.wire.protocol import Instruction, extremes, names_up, tensors_of

VARIANCE, COUNTS = "running_var", "counts"
"""Last parts of the names of tensors that are never negative."""


@dataclass(frozen=True)
class Assignment:
    """One step of the plan for one site, with the models that hold the weights received.

    Attributes:
        step: the step of the plan.
        site: the site that carries it out.
        model: with the weights received.
        teacher: the model of the task before, if it was sent.
        taken: the contributions that the server says its sums contain.
    """

    step: Step
    site: Site
    model: IncrementalModel
    teacher: IncrementalModel | None
    taken: Sequence[int] = ()

    @property
    def experiment(self) -> Experiment:
        """The experiment as the site sees it: with its own data and device."""
        return self.site.experiment

    @property
    def seed(self) -> int:
        """The seed of this step at this site."""
        step = self.step
        return derive_seed(self.experiment.config.seed, step.stage.name, step.task, step.round, self.site.index)

    def embed(self, samples: Samples, end: Level) -> Tensor:
        """Return what the network computes from samples up to a level, in float32."""
        config, device = self.experiment.config, self.experiment.device
        with self.experiment.autocast():
            return embed_samples(
                self.model,
                samples,
                config.normalisation,
                device,
                end,
                config.compute.device_megabytes,
                self.experiment.frozen_batch,
            ).float()

    def embed_once(self, samples: Samples, end: Level) -> Tensor:
        """Embed samples once, and keep the result for rounds that show the same images to the same frozen weights.

        The result is rounded as `compute.features` says, whether it was kept or not.
        """
        state = self.model.state_dict()
        names = [name for name in deciding_names(self.model) if end == "features" or ".adapters." not in name]
        compute = self.experiment.config.compute
        what = (self.model.network, end, compute.precision, fingerprint({name: state[name] for name in names}))
        return self.site.once(what, samples, lambda: self.embed(samples, end).to(getattr(torch, compute.features)))

    def embed_by_teacher(self, samples: Samples) -> Tensor:
        """Return the features that the previous task's model makes of samples, as `embed_once` does."""
        assert self.teacher is not None
        earlier = with_own_statistics(self.teacher, self.step, self.site)
        return replace(self, model=earlier).embed_once(samples, "features")


def receive(instruction: Instruction, site: Site) -> Assignment:
    """Build the assignment that an instruction gives a site, with the weights received in its models.

    Raises:
        ProtocolError: the instruction does not fit the experiment, or holds values that no honest server sends.
    """
    experiment = site.experiment
    step = experiment.step(instruction.step, instruction.correction)
    own = {name: t for name, t in instruction.weights.items() if not name.startswith(TEACHER_PREFIX)}
    taught = {name.removeprefix(TEACHER_PREFIX): t for name, t in instruction.weights.items() if name not in own}
    model = experiment.build_model(step.task)
    _load(model, own, names_down(experiment, step.task, step.stage))
    teacher = None
    if taught or beside_teacher(step.stage):
        teacher = copy.deepcopy(experiment.build_model(step.task - 1))
        declared = matching((f"{TEACHER_PREFIX}{name}" for name in travelling_names(teacher)), step.stage.down)
        _load(teacher, taught, [name.removeprefix(TEACHER_PREFIX) for name in declared])
        teacher.requires_grad_(False).eval()
    check_values(instruction.weights)
    step.stage.check_received(model)
    if experiment.device.type != "cpu":
        model.to(experiment.device)
        if teacher:
            teacher.to(experiment.device)
    normalised = with_own_statistics(model, step, site)
    return Assignment(step, site, normalised, teacher, instruction.taken)


def beside_teacher(stage: Stage) -> bool:
    """Tell whether a stage's features are those of two models, the previous task's first."""
    return isinstance(stage, Summarise) and stage.beside_teacher


def check_values(received: Mapping[str, Tensor]) -> None:
    """Refuse tensors that make an answer depend on one image in a way that no noise hides, or no sense at all.

    Args:
        received: by name, those of a teacher too.

    Raises:
        ProtocolError: a value is not finite, or a variance or a number of images is negative; it names the tensor.
    """
    for name, (low, high) in extremes(received).items():
        if not -math.inf < low <= high < math.inf:
            raise ProtocolError(f"the tensor {name!r} was received with a value that is not finite")
        if low < 0 and name.rpartition(".")[2] in (VARIANCE, COUNTS):
            raise ProtocolError(f"the tensor {name!r} was received with {low:g}", accepted="0 or more")


@lru_cache(maxsize=64)
def names_down(experiment: Experiment, task: int, stage: Stage) -> list[str]:
    """List the names of the tensors that a site is sent in a stage, without those of a teacher."""
    return matching(travelling_names(experiment.build_model(task)), stage.down)


@lru_cache(maxsize=64)
def declared_answer(experiment: Experiment, task: int, stage: Stage) -> dict[str, Tensor]:
    """Return tensors, without values, of the types and shapes of those that a site may return in a stage, by name."""
    model = experiment.build_model(task)
    return {
        name: torch.empty_like(own, device="meta") for name, own in tensors_of(model, names_up(model, stage)).items()
    }


@torch.no_grad()
def _load(model: IncrementalModel, weights: Mapping[str, Tensor], expected: list[str]) -> None:
    if set(weights) != set(expected):
        odd = sorted(set(weights) ^ set(expected))
        raise ProtocolError(f"{len(odd)} tensors are missing or were not declared for this stage, such as {odd[0]!r}")
    state = tensors_in(model)
    for name, tensor in weights.items():
        own = state[name]
        if (own.shape, own.dtype) != (tensor.shape, tensor.dtype):  # a finite float64 may be infinite in float32
            raise ProtocolError(
                f"the weights received do not fit the model: {name!r} is {tensor.dtype} {tuple(tensor.shape)}",
                accepted=f"{own.dtype} {tuple(own.shape)}",
            )
        own.copy_(tensor)


class EpochBatches:
    """Shuffled batches of a training set, epoch by epoch; what lies before the level is computed once.

    Images stand on the device if they leave the network room there; otherwise each batch is copied to it.
    """

    def __init__(self, assignment: Assignment, samples: Samples, level: Level) -> None:
        self.level = level
        self._assignment = assignment
        self._labels = samples.labels.to(assignment.experiment.device)
        self._inputs: Images = samples.images
        if level == "images":
            self._inputs = near(samples.images, assignment.experiment)
        elif len(samples):
            self._inputs = assignment.embed_once(samples, level)
            if beside_teacher(assignment.step.stage):
                self._inputs = torch.cat([assignment.embed_by_teacher(samples), self._inputs], dim=1)
        self._on_device = isinstance(self._inputs, Tensor) and self._inputs.device == self._labels.device
        stage = assignment.step.stage
        frozen = assignment.experiment.frozen_batch
        self._augmentation = "none" if isinstance(stage, Check) else assignment.experiment.config.data.augmentation
        self._batch_size = stage.optimisation.batch_size if isinstance(stage, Fit) else max(frozen, FEWEST_SAMPLES)

    def among(self, chosen: Tensor) -> EpochBatches:
        """Return batches of the samples where `chosen`, Tensor[N] bool, is true; nothing is computed again."""
        part, places = copy.copy(self), chosen.nonzero().flatten()
        part._labels = self._labels[moved(places, self._labels.device)]
        part._inputs = self._inputs[moved(places, self._labels.device) if self._on_device else places]
        return part

    def order(self, epoch: int) -> tuple[list[Tensor], torch.Generator]:
        """Return the indices of each batch of an epoch, and the generator that augments them."""
        generator = seeded_generator(self._assignment.seed, "epoch", epoch)
        return shuffled(len(self._labels), self._batch_size, generator), generator

    def __call__(self, epoch: int) -> Iterator[Batch]:
        """Yield the batches of an epoch."""
        return ((inputs, labels) for _, inputs, labels in self.drawn(epoch))

    def drawn(self, epoch: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield the batches of an epoch, each with the indices of its samples first, Tensor[B]."""
        config, device = self._assignment.experiment.config, self._assignment.experiment.device
        batches, generator = self.order(epoch)
        for index in batches:
            place = moved(index, device)
            inputs = self._inputs[place] if self._on_device else moved(self._inputs[index], device)
            if self.level != "images":
                inputs = inputs.float()
            elif len(index):
                inputs = to_input(augment(inputs, self._augmentation, generator), config.normalisation, device)
            yield index, inputs, self._labels[place]


def near(images: Images, experiment: Experiment) -> Images:
    """Return images on the device that computes, if they leave the network room there; else as they are."""
    device = experiment.device
    nbytes = math.prod(images.shape)
    if device.type == "cpu" or not fits(nbytes, device, experiment.config.compute.device_megabytes):
        return images
    held = torch.empty(images.shape, dtype=torch.uint8, device=device)
    for start in range(0, len(images), BATCH):
        held[start : start + BATCH] = moved(images[start : start + BATCH], device)
    return held


def start_level(wanted: Level, augmentation: str) -> Level:
    """Return the level from which epochs start: augmented images differ in each, so none of their features are kept."""
    return "images" if wanted == "prefix" and augmentation != "none" else wanted


def take(model: IncrementalModel, names: Iterable[str]) -> dict[str, Tensor]:
    """Return the model's tensors with these names, for sending; on the CPU they change with the model."""
    state = tensors_in(model)
    return {name: state[name].detach().cpu() for name in names}
