"""Do each kind of step, as a pure function of the instruction, the site's images and its memory."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from client.steps.forgetting import kept_apart, withdrawn_from
from client.steps.local_step import FEWEST_SAMPLES, EpochBatches, LocalStep, receive, start_level, take
from client.steps.private_steps import private_fit_step, private_remember_step, private_summarise_step
from client.steps.site import Site
from dynammo_core.data.samples import Samples
from dynammo_core.memory.rehearsal import remember
from dynammo_core.plan import Fit, Forget, LossContext, Remember, Summarise
from dynammo_core.privacy.client_level import shortened_update
from dynammo_core.scoring.evaluation import answer_counts, predictions
from dynammo_core.support.errors import ProtocolError
from dynammo_core.training import fit, train_only
from dynammo_core.wire.protocol import SUMMED, Instruction, Report, names_up, numbers_of
from dynammo_core.wire.protocol_checks import check_report


def answer(instruction: Instruction, site: Site) -> Report:
    """Do the step that is asked for, and return a report that may leave unmasked.

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
        raise ProtocolError(f"under secure aggregation {action.value!r} is answered only with masks")
    return replace(report, numbers={"seconds": report.numbers["seconds"]})


def do_step(instruction: Instruction, site: Site) -> Report:
    """Do the step that is asked for, and check the answer against the protocol before it may leave.

    Raises:
        ProtocolError: the instruction does not fit the experiment, or the answer would hold what is not declared.
        DynammoError: the site's images or memory cannot serve.
    """
    started = time.monotonic()
    site.experiment.use_torch()
    local = receive(instruction, site)
    action, experiment = local.step.stage.action, site.experiment
    private = experiment.protects_images
    report = _done(local)
    if report.numbers and "seconds" in numbers_of(action, private):
        report = replace(report, numbers={**report.numbers, "seconds": time.monotonic() - started})
    seen = experiment.stream.seen(local.step.task)
    most = experiment.most_samples(site.index, action)
    check_report(report, local.step.stage, local.model, experiment.classes, seen, most=most, private=private, own=True)
    return report


def _done(local: LocalStep) -> Report:
    """Do what the kind of the stage asks for, in its private way if training images are protected one by one."""
    private = local.experiment.protects_images
    match local.step.stage:
        case Fit() as stage:
            return private_fit_step(local, stage) if private else fit_step(local, stage)
        case Forget() as stage:
            return forget_step(local, stage)
        case Summarise() as stage:
            return private_summarise_step(local, stage) if private else summarise_step(local, stage)
        case Remember():
            return private_remember_step(local) if private else remember_step(local)
        case _:
            return evaluate_step(local)


def fit_step(local: LocalStep, stage: Fit) -> Report:
    """Train what the stage sends up on its training set; abstain without samples to learn from."""
    config = local.experiment.config
    samples = stage.learns_from(local.site.rehearsal(local.step.task))
    if len(samples) < FEWEST_SAMPLES:
        return Report(abstained=True)
    names = names_up(local.model, stage)
    batches = EpochBatches(local, samples, start_level(stage.inputs, config.data.augmentation))
    received = take(local.model, names)
    parameters = train_only(local.model, set(names))
    context = LossContext(local.step.task, batches.level, local.teacher)
    loss = fit(
        parameters,
        lambda inputs, labels: stage.loss(local.model, inputs, labels, context),
        batches,
        stage.optimisation,
        round_=local.step.round,
    )
    trained = take(local.model, names)
    if config.privacy.mechanism == "client":
        trained = shortened_update(trained, received, config.privacy.clip)
    return Report(False, trained, {"class_counts": _counts(local, samples), "loss": loss})


@torch.no_grad()
def summarise_step(local: LocalStep, stage: Summarise) -> Report:
    """Compute the stage's statistics over its training set; abstain without samples."""
    samples = stage.learns_from(local.site.rehearsal(local.step.task))
    if len(samples) < FEWEST_SAMPLES:
        return Report(abstained=True)
    if local.site.sums is not None and stage.correct is not None:
        samples = kept_apart(local.site, local.site.sums, samples)
        if len(samples) < FEWEST_SAMPLES:
            return Report(abstained=True)
        local.site.sums.note(local.step.contribution, samples)
    return Report(False, _sums(local, stage, samples), {"class_counts": _counts(local, samples)})


@torch.no_grad()
def forget_step(local: LocalStep, stage: Forget) -> Report:
    """Compute the negated sums of withdrawn images that the server's sums contain; abstain without any.

    What the server says it has taken in narrows them, and the site's own note decides what it may learn.
    """
    if local.site.sums is None:
        return Report(abstained=True)
    samples = withdrawn_from(local.site, local.site.sums, local.taken)
    local.site.sums.note(local.step.contribution, samples)
    if not len(samples):
        return Report(abstained=True)
    negated = {name: -tensor for name, tensor in _sums(local, stage, samples).items()}
    return Report(False, negated, {"class_counts": _counts(local, samples)})


def _sums(local: LocalStep, stage: Summarise, samples: Samples) -> dict[str, Tensor]:
    batches = EpochBatches(local, samples, stage.inputs)
    local.model.eval()
    sums = stage.computes(local.model, batches(0))
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

    If it has test images of classes to come, count their open-set scores too.
    """
    method, task, tasks = local.experiment.method, local.step.task, len(local.experiment.stream)
    samples, features = _tested(local, range(task + 1))
    _, unlearnt = _tested(local, range(task + 1, tasks))
    answered, guessed = (predictions(method, local.model, part) for part in (features, unlearnt))
    tables = answer_counts(answered, samples.labels, guessed, local.experiment.classes)
    return Report(False, {}, {"class_counts": _counts(local, samples), **tables})


def _tested(local: LocalStep, tasks: Iterable[int]) -> tuple[Samples, Tensor]:
    """Return the site's test images of tasks and their features, task by task, so that they can be cached."""
    parts = [local.site.test_images(local.experiment.stream.classes(task)) for task in tasks]
    features = [local.embed_once(part, "features").float() for part in parts if len(part)]
    return Samples.concatenate(parts), torch.cat(features) if features else torch.empty(0)


def _counts(local: LocalStep, samples: Samples) -> list[int]:
    return samples.class_counts(local.experiment.classes)
