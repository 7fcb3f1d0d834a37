"""What a site does in each kind of step: a pure function of the instruction, the site's images and its memory."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch
from torch import Tensor

from client.forgetting import withdrawn_from
from client.own_statistics import deciding_names, with_own_statistics
from client.site import Site
from dynammo_core.data.feature_cache import fingerprint
from dynammo_core.data.samples import Samples
from dynammo_core.data.transforms import augment, to_input
from dynammo_core.errors import ProtocolError
from dynammo_core.evaluation import answer_counts, embed_samples, predictions
from dynammo_core.experiment import Experiment
from dynammo_core.memory.rehearsal import remember
from dynammo_core.methods.base import TEACHER_PREFIX, Batch, LossContext
from dynammo_core.models.incremental_model import IncrementalModel, Level, matching, travelling_names
from dynammo_core.plan import Action, Step
from dynammo_core.privacy.client_level import shortened_update
from dynammo_core.protocol import SUMMED, Instruction, Report, names_up, numbers_of
from dynammo_core.protocol_checks import check_report
from dynammo_core.seeding import derive_seed, seeded_generator
from dynammo_core.training import fit, shuffled, train_only

FEWEST_SAMPLES = 2
"""A site with fewer abstains: one image has no batch statistics, and what it teaches would tell too much of it."""


@dataclass(frozen=True)
class LocalStep:
    """An instruction, unpacked: the step, the site that does it, and the models with the weights received.

    `taken` is that of the instruction.
    """

    step: Step
    site: Site
    model: IncrementalModel
    teacher: IncrementalModel | None
    taken: Sequence[int] = ()

    @property
    def experiment(self) -> Experiment:
        """As the site sees it: with its own data and device."""
        return self.site.experiment

    @property
    def seed(self) -> int:
        """The seed of this step at this site."""
        step = self.step
        return derive_seed(self.experiment.config.seed, step.stage.name, step.task, step.round, self.site.index)

    def never_taken(self, contribution: int) -> bool:
        """Whether a contribution came before this correction, and the server's sums do not contain it."""
        return contribution not in self.taken and -self.step.round < contribution <= self.step.index

    def embed(self, samples: Samples, end: Level) -> Tensor:
        """Samples carried to a level of the network."""
        config, device = self.experiment.config, self.experiment.device
        return embed_samples(self.model, samples, config.data.normalisation, device, end)

    def embed_once(self, samples: Samples, end: Level) -> Tensor:
        """As `embed`, but kept for the next rounds, which bring the same images to the same frozen weights."""
        state = self.model.state_dict()
        names = [name for name in deciding_names(self.model) if end == "features" or ".adapters." not in name]
        key = (end, samples.record_ids, fingerprint({name: state[name] for name in names}))
        return self.experiment.feature_cache.get(key, lambda: self.embed(samples, end))


def answer(instruction: Instruction, site: Site) -> Report:
    """Do the step that is asked for; what may leave of it as it is.

    Raises:
        ProtocolError: as `do_step`, or this answer may leave in a sum alone.
        DynammoError: as `do_step`.
    """
    report = do_step(instruction, site)
    experiment = site.experiment
    if not experiment.config.federation.secure_aggregation:
        return report
    action = experiment.steps[instruction.step].stage.action
    if action in SUMMED:
        raise ProtocolError(f"under secure aggregation {action.value!r} is answered under masks alone")
    return replace(report, numbers={"seconds": report.numbers["seconds"]})


def do_step(instruction: Instruction, site: Site) -> Report:
    """Do the step that is asked for, and check the answer against the protocol before it may leave.

    Raises:
        ProtocolError: the instruction does not fit the experiment, or the answer would hold what is not declared.
        DynammoError: the site's images or memory cannot serve.
    """
    started = time.monotonic()
    site.experiment.use_torch()
    local = _unpack(instruction, site)
    action, experiment = local.step.stage.action, site.experiment
    private = experiment.protects_images
    report = (_private_actions() if private else ACTIONS)[action](local)
    if report.numbers and "seconds" in numbers_of(action, private):
        report = replace(report, numbers={**report.numbers, "seconds": time.monotonic() - started})
    seen = experiment.stream.seen(local.step.task)
    check_report(report, local.step.stage, local.model, experiment.classes, seen, private=private)
    return report


def fit_step(local: LocalStep) -> Report:
    """Train what the stage sends up on the method's training set; abstain without samples to learn from."""
    method, stage, config = local.experiment.method, local.step.stage, local.experiment.config
    samples = method.training_set(stage, local.site.rehearsal(local.step.task))
    if len(samples) < FEWEST_SAMPLES:
        return Report(abstained=True)
    assert stage.optimisation is not None
    names = names_up(local.model, stage)
    batches = EpochBatches(local, samples, start_level(stage.inputs, config.data.augmentation))
    received = take(local.model, names)
    parameters = train_only(local.model, set(names))
    context = LossContext(local.step.task, replace(stage, inputs=batches.level), local.teacher)
    loss = fit(
        parameters,
        lambda inputs, labels: method.loss(local.model, inputs, labels, context),
        batches,
        stage.optimisation,
        round_=local.step.round,
    )
    trained = take(local.model, names)
    if config.privacy.mechanism == "client":
        trained = shortened_update(trained, received, config.privacy.clip)
    return Report(False, trained, {"class_counts": _counts(local, samples), "loss": loss})


@torch.no_grad()
def summarise_step(local: LocalStep) -> Report:
    """Compute the method's statistics over its training set; abstain without samples."""
    method, stage = local.experiment.method, local.step.stage
    samples = method.training_set(stage, local.site.rehearsal(local.step.task))
    if len(samples) < FEWEST_SAMPLES:
        return Report(abstained=True)
    if local.site.sums is not None and method.forget(local.step.task) is not None:
        local.site.sums.note(local.step.contribution, samples)
    return Report(False, _sums(local, samples), {"class_counts": _counts(local, samples)})


@torch.no_grad()
def forget_step(local: LocalStep) -> Report:
    """Sums of the images of withdrawn records that the server's sums contain, negated; abstain where there are none.

    What the server says it has taken in decides: an answer that was lost is simply not among that.
    """
    if local.site.sums is None:
        return Report(abstained=True)
    samples = withdrawn_from(local.site, local.site.sums.inside(local.taken))
    local.site.sums.note(local.step.contribution, samples, lost=local.never_taken)
    if not len(samples):
        return Report(abstained=True)
    negated = {name: -tensor for name, tensor in _sums(local, samples).items()}
    return Report(False, negated, {"class_counts": _counts(local, samples)})


def _sums(local: LocalStep, samples: Samples) -> dict[str, Tensor]:
    batches = EpochBatches(local, samples, local.step.stage.inputs, batch_size=128)
    local.model.eval()
    sums = local.experiment.method.summarise(local.model, batches(0), local.step.stage)
    return {name: tensor.detach().cpu().clone() for name, tensor in sums.items()}


@torch.no_grad()
def remember_step(local: LocalStep) -> Report:
    """Take the task into the site's memory, exactly once however often it is asked."""
    task, config = local.step.task, local.experiment.config
    with local.site.store.locked():
        memory = local.site.memory_to_extend(task)
        if memory.task < task:
            memory = remember(
                memory,
                local.site.new_images(task),
                task=task,
                settings=config.memory,
                sites=config.federation.sites,
                features=lambda samples: local.embed(samples, "features").cpu(),
                seed=local.seed,
                today=local.site.today,
                class_names=local.experiment.class_names,
            )
            local.site.store.save(memory)
    size = local.site.store.path.stat().st_size
    return Report(False, {}, {"class_counts": _counts(local, memory.samples), "memory_bytes": float(size)})


@torch.no_grad()
def evaluate_step(local: LocalStep) -> Report:
    """Count right and wrong answers on the site's test images of every class seen so far, and how sure they are.

    Where it has test images of classes to come, count too how known the model thinks they are.
    """
    stream, task = local.experiment.stream, local.step.task
    samples, others = (local.site.test_images(classes) for classes in (stream.seen(task), stream.to_come(task)))
    features, unlearnt = (local.embed(part, "features") if len(part) else torch.empty(0) for part in (samples, others))
    answered, guessed = (predictions(local.experiment.method, local.model, part) for part in (features, unlearnt))
    tables = answer_counts(answered, samples.labels, guessed, local.experiment.classes)
    return Report(False, {}, {"class_counts": _counts(local, samples), **tables})


ACTIONS: Mapping[Action, Callable[[LocalStep], Report]] = MappingProxyType(
    {
        Action.FIT: fit_step,
        Action.SUMMARISE: summarise_step,
        Action.REMEMBER: remember_step,
        Action.EVALUATE: evaluate_step,
        Action.FORGET: forget_step,
    }
)


def _private_actions() -> Mapping[Action, Callable[[LocalStep], Report]]:
    """What stands for `ACTIONS` where training images are protected one by one."""
    from client.private_steps import private_fit_step, private_remember_step, private_summarise_step

    private = {Action.FIT: private_fit_step, Action.SUMMARISE: private_summarise_step}
    return {**ACTIONS, **private, Action.REMEMBER: private_remember_step}


class EpochBatches:
    """Shuffled batches of a training set, epoch by epoch; what lies before the level is computed once."""

    def __init__(self, local: LocalStep, samples: Samples, level: Level, batch_size: int | None = None) -> None:
        self.level = level
        self._local = local
        self._labels = samples.labels.to(local.experiment.device)
        self._inputs = samples.images if level == "images" or not len(samples) else local.embed_once(samples, level)
        optimisation = local.step.stage.optimisation
        self._batch_size = batch_size or (optimisation.batch_size if optimisation else 128)

    def order(self, epoch: int) -> tuple[list[Tensor], torch.Generator]:
        """The indices of each batch of an epoch, and the generator that augments them."""
        generator = seeded_generator(self._local.seed, "epoch", epoch)
        return shuffled(len(self._labels), self._batch_size, generator), generator

    def __call__(self, epoch: int) -> Iterator[Batch]:
        """The batches of an epoch."""
        data, device = self._local.experiment.config.data, self._local.experiment.device
        batches, generator = self.order(epoch)
        for index in batches:
            inputs = self._inputs[index]
            if self.level == "images" and len(index):
                inputs = to_input(augment(inputs, data.augmentation, generator), data.normalisation, device)
            yield inputs, self._labels[index]


def start_level(wanted: Level, augmentation: str) -> Level:
    """Augmented images differ in every epoch, so nothing before the first trained layer can be kept."""
    return "images" if wanted == "prefix" and augmentation != "none" else wanted


def _unpack(instruction: Instruction, site: Site) -> LocalStep:
    experiment = site.experiment
    step = experiment.step(instruction.step, instruction.correction)
    own = {name: t for name, t in instruction.weights.items() if not name.startswith(TEACHER_PREFIX)}
    taught = {name.removeprefix(TEACHER_PREFIX): t for name, t in instruction.weights.items() if name not in own}
    model = experiment.build_model(step.task)
    _load(model, own, matching(travelling_names(model), step.stage.down))
    teacher = None
    if taught:
        teacher = copy.deepcopy(experiment.build_model(step.task - 1))
        declared = matching((f"{TEACHER_PREFIX}{name}" for name in travelling_names(teacher)), step.stage.down)
        _load(teacher, taught, [name.removeprefix(TEACHER_PREFIX) for name in declared])
        teacher.requires_grad_(False).eval().to(experiment.device)
    normalised = with_own_statistics(model.to(experiment.device), step, site)
    return LocalStep(step, site, normalised, teacher, instruction.taken)


def _load(model: IncrementalModel, weights: Mapping[str, Tensor], expected: list[str]) -> None:
    if set(weights) != set(expected):
        odd = sorted(set(weights) ^ set(expected))
        raise ProtocolError(f"{len(odd)} tensors are missing or were not declared for this stage, such as {odd[0]!r}")
    try:
        model.load_state_dict(dict(weights), strict=False)
    except RuntimeError as error:
        raise ProtocolError(f"the weights received do not fit the model ({' '.join(str(error).split())})") from error


def take(model: IncrementalModel, names: list[str]) -> dict[str, Tensor]:
    """Copies of the model's tensors of these names, for sending."""
    state = model.state_dict()
    return {name: state[name].detach().cpu().clone() for name in names}


def _counts(local: LocalStep, samples: Samples) -> list[int]:
    return samples.class_counts(local.experiment.classes)
