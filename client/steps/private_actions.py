"""Do steps under example-level differential privacy: charge the budget, then add noise to what leaves."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from client.state.privacy_ledger import Ledger, LedgerFile
from client.steps.assignment import Assignment, EpochBatches, start_level, take
from dynammo_core.data.samples import Samples
from dynammo_core.models.names import Level
from dynammo_core.plan import Fit, LearningStage, LossContext, Summarise, WeighedBatch
from dynammo_core.privacy.accounting import Charge
from dynammo_core.privacy.gradients import PrivateGradients
from dynammo_core.privacy.noise import Noise, poisson_batches
from dynammo_core.privacy.plan import CENSUS, census_charge, charge_of, classes_of_stage
from dynammo_core.privacy.rehearsal import (
    Chance,
    PrivateRehearsal,
    blank,
    evenly,
    hashed,
    hashed_by_patient,
    kept,
    public_share,
    remember_by_record,
)
from dynammo_core.privacy.units import Unit, owners, require_patients, shares
from dynammo_core.support.seeding import derive_seed
from dynammo_core.training import fit, train_only
from dynammo_core.wire.protocol import Report, names_up

logger = logging.getLogger("dynammo.client")


@dataclass(frozen=True)
class Permit:
    """An answer that is paid for.

    Attributes:
        samples: the training set.
        counts: noised number of its images (of its patients, if patients are protected) by class, C of them.
        classes: that it may hold.
        noise: for the answer.
        multiplier: of that noise.
        epsilon: that the site has spent, this answer included.
    """

    samples: Samples
    counts: list[int]
    classes: tuple[int, ...]
    noise: Noise
    multiplier: float
    epsilon: float

    @classmethod
    def of(cls, assignment: Assignment, stage: LearningStage) -> Self | Report:
        """Pay for the step, or abstain: for lack of images as far as the census tells, or of budget.

        The charge is on the disk before the answer exists. A simulated site draws the same noise when it is
        asked again and says nothing new, so it is charged once; a real one draws new noise, and is charged anew.
        """
        method, site = assignment.experiment.method, assignment.site
        require_patients(assignment.experiment.dataset.train, _unit(assignment))
        settings, multiplier = assignment.experiment.config.privacy, assignment.experiment.noise_multiplier
        with LedgerFile(site.store.path.parent).changing() as ledger:
            if not _counted(assignment, ledger):
                return Report(True, {}, {"epsilon": ledger.epsilon(settings.delta)})
            rehearsal = _rehearsal(assignment, ledger.census)
            shadow = stage.learns_from(rehearsal.shadow())
            charge = charge_of(assignment.step, method, multiplier)
            enough = len(shadow) >= stage.fewest_samples
            if not enough or (charge and not _paid(assignment, ledger, charge)):
                return Report(True, {}, {"epsilon": ledger.epsilon(settings.delta)})
            spent = ledger.epsilon(settings.delta)
        samples = stage.learns_from(rehearsal)
        counts = shadow.class_counts(assignment.experiment.classes)
        classes = classes_of_stage(stage, method.stream, assignment.step.task)
        return cls(samples, counts, classes, _noise(assignment, "answer"), multiplier, spent)

    @property
    def numbers(self) -> dict[str, float | list[int]]:
        """Return the numbers that are sent with the tensors."""
        return {"class_counts": self.counts, "epsilon": self.epsilon}


def answer_fit_privately(assignment: Assignment, stage: Fit) -> Report:
    """Train as `answer_fit` does, by DP-SGD: Poisson batches, clipped gradients of single samples, weights, noise."""
    permit = Permit.of(assignment, stage)
    if isinstance(permit, Report):
        return permit
    config = assignment.experiment.config
    rate = config.privacy.sampling_rate
    names = names_up(assignment.model, stage)
    level = start_level(stage.inputs, config.data.augmentation)
    owner = owners(permit.samples, _unit(assignment))
    batches = PoissonBatches(assignment, permit.samples, level, owner, rate, permit.noise)
    parameters = train_only(assignment.model, set(names))
    context = LossContext(assignment.step.task, batches.level, assignment.teacher)

    def loss(inputs: Tensor, labels: Tensor) -> Tensor:
        return stage.loss(assignment.model, inputs, labels, context)

    gradients = PrivateGradients(
        assignment.model,
        loss,
        clip=config.privacy.clip,
        noise_multiplier=permit.multiplier,
        expected=max(1.0, rate * sum(permit.counts)),
        noise=permit.noise,
    )
    weighed = weigh(batches, shares(owner))
    round_, proximal = assignment.step.round, config.federation.proximal
    fit(parameters, loss, weighed, stage.optimisation, round_=round_, proximal=proximal, gradients=gradients)
    return Report(False, take(assignment.model, names), permit.numbers)


@torch.no_grad()
def answer_summarise_privately(assignment: Assignment, stage: Summarise) -> Report:
    """Compute sums as `answer_summarise` does, and add noise to them."""
    permit = Permit.of(assignment, stage)
    if isinstance(permit, Report):
        return permit
    batches = EpochBatches(assignment, permit.samples, stage.inputs)
    assignment.model.eval()

    def noise(shape: tuple[int, ...], sensitivity: float) -> Tensor:
        drawn = permit.noise.normal(torch.Size(shape).numel()).view(shape)
        return permit.multiplier * sensitivity * drawn

    counts = {label: permit.counts[label] for label in permit.classes}
    weighed = weigh(batches, shares(owners(permit.samples, _unit(assignment))))
    found = weighed(0) if len(permit.samples) else ()
    sums = stage.computes_privately(assignment.model, found, counts, noise)
    tensors = {name: tensor.detach().cpu().clone() for name, tensor in sums.items()}
    return Report(False, tensors, permit.numbers)


@torch.no_grad()
def answer_remember_privately(assignment: Assignment) -> Report:
    """Choose exemplars image by image; what is told about the memory is computed from the census."""
    task, experiment, site = assignment.step.task, assignment.experiment, assignment.site
    require_patients(experiment.dataset.train, _unit(assignment))
    settings = experiment.config.privacy
    with LedgerFile(site.store.path.parent).changing() as ledger:
        _counted(assignment, ledger)
        epsilon, census = ledger.epsilon(settings.delta), dict(ledger.census)
    share = _share(assignment, len(experiment.stream.seen(task)))
    with site.store.locked():
        memory = site.memory_to_extend(task)
        if memory.task < task:
            memory = remember_by_record(
                memory,
                _of_classes(site.new_images(task), census),
                task=task,
                share=share,
                census=census,
                chance=_chance(assignment),
                today=site.today,
                class_names=experiment.class_names,
            )
            site.store.save(memory)
    expected = kept(blank(census), share, census, evenly)
    return Report(False, {}, {"class_counts": expected.class_counts(experiment.classes), "epsilon": epsilon})


class PoissonBatches(EpochBatches):
    """Batches that each owner of samples enters by itself with the same probability; some may be empty."""

    def __init__(
        self, assignment: Assignment, samples: Samples, level: Level, owner: Tensor, rate: float, noise: Noise
    ) -> None:
        super().__init__(assignment, samples, level)
        self._owner, self._rate, self._noise = owner, rate, noise

    def order(self, epoch: int) -> tuple[list[Tensor], torch.Generator]:
        """Draw batches from the noise source in each epoch: membership in a batch is a secret too."""
        return poisson_batches(self._owner, self._rate, self._noise), self._noise.generator()


def weigh(batches: EpochBatches, weights: Tensor) -> Callable[[int], Iterator[WeighedBatch]]:
    """Return the same batches with what each sample weighs, from the weights of all samples, Tensor[N]."""
    return lambda epoch: ((inputs, labels, weights[index]) for index, inputs, labels in batches.drawn(epoch))


def _counted(assignment: Assignment, ledger: Ledger) -> bool:
    """Return whether the census holds the task's classes; take it now if it does not and the budget allows."""
    task, settings = assignment.step.task, assignment.experiment.config.privacy
    classes = assignment.experiment.stream.classes(task)
    if set(classes) <= set(ledger.census):
        return True
    if not _paid(assignment, ledger, census_charge(task, classes, settings)):
        return False
    new = assignment.site.new_images(task)
    weights = shares(owners(new, settings.unit))
    counts = torch.bincount(new.labels, weights=weights, minlength=assignment.experiment.classes)
    noised = counts[list(classes)] + settings.count_noise * _noise(assignment, CENSUS).normal(len(classes))
    ledger.census.update(zip(classes, noised.round().clamp_min(0).int().tolist(), strict=True))
    return True


def _paid(assignment: Assignment, ledger: Ledger, charge: Charge) -> bool:
    """Enter a charge, unless it was entered before for the same bits, or would pass the budget."""
    settings = assignment.experiment.config.privacy
    name = assignment.site.charge_name(f"{charge.task + 1}/{charge.stage}/{charge.round + 1}", ledger.charges)
    if name in ledger.charges:
        return True
    wanted = ledger.epsilon(settings.delta, charge)
    if math.isnan(wanted) or wanted > settings.epsilon:
        logger.warning("abstains from %s: epsilon would be %.3f, the budget is %g", name, wanted, settings.epsilon)
        return False
    budget = assignment.site.budget
    if budget is not None and not budget.pay(charge, assignment.experiment.class_names):
        return False
    ledger.charges[name] = charge
    return True


def _rehearsal(assignment: Assignment, census: Mapping[int, int]) -> PrivateRehearsal:
    task, experiment = assignment.step.task, assignment.experiment
    usual = assignment.site.rehearsal(task)
    old = experiment.stream.seen(task - 1)
    fields = {**vars(usual), "new": _of_classes(usual.new, census), "memory": _of_classes(usual.memory, census)}
    return PrivateRehearsal(
        **fields, census=dict(census), old=old, image_bytes=_image_bytes(assignment), chance=_chance(assignment)
    )


def _of_classes(samples: Samples, census: Mapping[int, int]) -> Samples:
    """Return the images of classes that were counted: no charge pays for the others."""
    return samples.subset(torch.nonzero(torch.isin(samples.labels, torch.tensor(sorted(census)))).flatten())


def _share(assignment: Assignment, classes: int) -> float:
    config = assignment.experiment.config
    return public_share(
        config.memory, assignment.site.index, config.federation.sites, classes, _image_bytes(assignment)
    )


def _image_bytes(assignment: Assignment) -> int:
    return 3 * int(assignment.experiment.config.data.image_size) ** 2


def _chance(assignment: Assignment) -> Chance:
    by_unit = hashed_by_patient if _unit(assignment) == "patient" else hashed
    return by_unit(derive_seed(assignment.experiment.config.seed, "memory", assignment.site.index))


def _unit(assignment: Assignment) -> Unit:
    unit: Unit = assignment.experiment.config.privacy.unit
    return unit


def _noise(assignment: Assignment, purpose: str) -> Noise:
    """Return the noise of an answer, or of a task's census, which is the same whichever step asks for it first."""
    if purpose == CENSUS:
        return assignment.site.noise(
            assignment.experiment.config.seed, CENSUS, assignment.step.task, assignment.site.index
        )
    return assignment.site.noise(assignment.seed, purpose)
