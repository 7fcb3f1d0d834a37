"""How a site answers each action of a stage: a pure function of the instruction, its images and its memory."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from client.state.statistics_file import HEAD, HELD
from client.steps.assignment import Assignment, EpochBatches, declared_answer, receive, start_level, take
from client.steps.descent import descend
from client.steps.forgetting import kept_apart, withdrawn_from
from client.steps.own_heads import own_heads
from client.steps.private_actions import answer_fit_privately, answer_remember_privately, answer_summarise_privately
from client.steps.site import Site
from dynammo_core.best_round import Check
from dynammo_core.data.samples import FEWEST_SAMPLES, Samples
from dynammo_core.deployed.model_files import answering_tensors, tensors_sha256
from dynammo_core.memory.rehearsal import remember
from dynammo_core.methods.rehearsal import Rehearsal
from dynammo_core.plan import (
    PERSONAL,
    Evaluate,
    Fit,
    Forget,
    LossContext,
    Remember,
    Summarise,
)
from dynammo_core.privacy.client_level import shortened_update
from dynammo_core.scoring.evaluation import answer_counts, confusion_counts, predictions
from dynammo_core.scoring.own_choice import own_answers
from dynammo_core.support.devices import shortage_explained
from dynammo_core.support.errors import ProtocolError
from dynammo_core.wire.protocol import SUMMED, Instruction, Report, numbers_of
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


def own_head_again(instruction: Instruction, site: Site) -> None:
    """Make the site's own head again that a recorded test left and somebody deleted since; nothing of it leaves."""
    step = site.experiment.step(instruction.step, instruction.correction)
    made = isinstance(step.stage, Evaluate) and PERSONAL in step.stage.tables
    if made and not site.statistics.has_tested(step.task, HEAD):
        do_step(instruction, site)


def do_step(instruction: Instruction, site: Site) -> Report:
    """Do the step that is asked for, and check the answer against the protocol before it may leave.

    Raises:
        ProtocolError: the instruction does not fit the experiment, or the answer would hold what is not declared.
        DynammoError: the site's images, memory or device cannot serve.
    """
    started = time.monotonic()
    site.experiment.use_torch()
    with shortage_explained(site.experiment.device):
        assignment = receive(instruction, site)
        report = _answer(assignment)
    action, experiment = assignment.step.stage.action, site.experiment
    private = experiment.protects_images
    if report.numbers and "seconds" in numbers_of(assignment.step.stage, private):
        report = replace(report, numbers={**report.numbers, "seconds": time.monotonic() - started})
    seen = experiment.stream.seen(assignment.step.task)
    most = experiment.most_samples(site.index, action)
    check_report(
        report,
        assignment.step.stage,
        assignment.model,
        experiment.classes,
        seen,
        most=most,
        private=private,
        own=True,
        declared=declared_answer(experiment, assignment.step.task, assignment.step.stage),
    )
    return report


def _answer(assignment: Assignment) -> Report:
    """Do what the kind of the stage asks for, in its private way if training images are protected one by one."""
    private = assignment.experiment.protects_images
    match assignment.step.stage:
        case Check() as stage:
            return answer_check(assignment, stage)
        case Fit() as stage:
            return answer_fit_privately(assignment, stage) if private else answer_fit(assignment, stage)
        case Forget() as stage:
            return answer_forget(assignment, stage)
        case Summarise() as stage:
            return answer_summarise_privately(assignment, stage) if private else answer_summarise(assignment, stage)
        case Remember():
            return answer_remember_privately(assignment) if private else answer_remember(assignment)
        case Evaluate() as stage:
            return answer_evaluate(assignment, stage)
        case stage:
            raise NotImplementedError(f"no site can do {stage.action.value!r}")


def answer_fit(assignment: Assignment, stage: Fit) -> Report:
    """Train what the stage sends up on its training set; abstain without samples to learn from."""
    config = assignment.experiment.config
    samples = stage.learns_from(assignment.site.rehearsal(assignment.step.task))
    if len(samples) < FEWEST_SAMPLES:
        return Report(abstained=True)
    names = declared_answer(assignment.experiment, assignment.step.task, stage)
    batches = EpochBatches(assignment, samples, start_level(stage.inputs, config.data.augmentation))
    client_level = config.privacy.mechanism == "client"
    received = {name: tensor.clone() for name, tensor in take(assignment.model, names).items()} if client_level else {}
    loss = descend(assignment, stage, batches, names)
    trained = take(assignment.model, names)
    if client_level:
        trained = shortened_update(trained, received, config.privacy.clip)
    return Report(False, trained, {"class_counts": _counts(assignment, samples), "loss": loss})


@torch.no_grad()
def answer_check(assignment: Assignment, stage: Check) -> Report:
    """Compute the mean loss of the weights received on images that the stage holds out; abstain without any."""
    samples = stage.learns_from(assignment.site.rehearsal(assignment.step.task))
    if not len(samples):
        return Report(abstained=True)
    batches = EpochBatches(assignment, samples, stage.inputs)
    assignment.model.eval()
    context = LossContext(assignment.step.task, batches.level, assignment.teacher)
    total = torch.zeros((), dtype=torch.float64, device=assignment.experiment.device)
    for inputs, labels in batches(0):
        with assignment.experiment.autocast():
            total += stage.of.loss(assignment.model, inputs, labels, context).double() * len(labels)
    loss = float(total) / len(samples)
    return Report(False, {}, {"class_counts": _counts(assignment, samples), "loss": loss})


@torch.no_grad()
def answer_summarise(assignment: Assignment, stage: Summarise) -> Report:
    """Compute the stage's statistics over its training set; abstain with too few samples for them."""
    site = assignment.site
    rehearsal = site.rehearsal(assignment.step.task)
    if stage.beside_teacher:
        rehearsal = _enough_beside(assignment, rehearsal)
    samples, note = stage.learns_from(rehearsal), site.sums if stage.keeps_sums else None
    if note is not None and len(samples):
        samples = kept_apart(site, note, samples)
    if len(samples) < stage.fewest_samples:
        return Report(abstained=True)
    if note is not None:
        note.note(assignment.step.contribution, samples)
    return Report(False, _sums(assignment, stage, samples), {"class_counts": _counts(assignment, samples)})


def _enough_beside(assignment: Assignment, rehearsal: Rehearsal) -> Rehearsal:
    """Leave out what the difference of two sums over old and new features, or of one and a sum kept, would tell of.

    New images are held apart from all that was summed, and noted as a sum of their own; exemplars, which a difference
    shows by themselves, are enough or none.
    """
    site, new, memory = assignment.site, rehearsal.new, rehearsal.memory
    if site.sums is not None and len(new):
        new = kept_apart(site, site.sums, new)
        site.sums.note(assignment.step.contribution, new)
    if not site.fewest.enough(memory.patient_ids):
        memory = Samples.empty()
    return replace(rehearsal, new=new, memory=memory)


@torch.no_grad()
def answer_forget(assignment: Assignment, stage: Forget) -> Report:
    """Compute the negated sums of withdrawn images that the server's sums contain; abstain without any.

    What the server says it has taken in narrows them, and the site's own note decides what it may learn.
    """
    if assignment.site.sums is None:
        return Report(abstained=True)
    samples = withdrawn_from(assignment.site, assignment.site.sums, assignment.taken)
    assignment.site.sums.note(assignment.step.contribution, samples)
    if not len(samples):
        return Report(abstained=True)
    negated = {name: -tensor for name, tensor in _sums(assignment, stage, samples).items()}
    return Report(False, negated, {"class_counts": _counts(assignment, samples)})


def _sums(assignment: Assignment, stage: Summarise, samples: Samples) -> dict[str, Tensor]:
    batches = EpochBatches(assignment, samples, stage.inputs)
    assignment.model.eval()
    sums = stage.computes(assignment.model, batches(0))
    return {name: tensor.detach().cpu().clone() for name, tensor in sums.items()}


@torch.no_grad()
def answer_remember(assignment: Assignment) -> Report:
    """Take the task into the site's memory, exactly once however often it is asked."""
    task, config = assignment.step.task, assignment.experiment.config
    with assignment.site.store.locked():
        memory = assignment.site.memory_to_extend(task)
        if memory.task < task:
            memory = remember(
                memory,
                assignment.site.new_images(task),
                task=task,
                settings=config.memory,
                site=assignment.site.index,
                sites=config.federation.sites,
                features=lambda samples: assignment.embed(samples, "features").cpu(),
                seed=assignment.seed,
                today=assignment.site.today,
                class_names=assignment.experiment.class_names,
                fewest_patients=assignment.site.fewest.patients,
            )
            assignment.site.store.save(memory)
    size = assignment.site.store.path.stat().st_size
    return Report(False, {}, {"class_counts": _counts(assignment, memory.samples), "memory_bytes": float(size)})


@torch.no_grad()
def answer_evaluate(assignment: Assignment, stage: Evaluate) -> Report:
    """Count right and wrong answers on the site's test images of every class seen so far, and how sure they are.

    If it has test images of classes to come, count their open-set scores too.
    """
    method, task, tasks = assignment.experiment.method, assignment.step.task, len(assignment.experiment.stream)
    labels, features = _tested(assignment, range(task + 1))
    _, unlearnt = _tested(assignment, range(task + 1, tasks))
    answered, guessed = (predictions(method, assignment.model, part) for part in (features, unlearnt))
    classes = assignment.experiment.classes
    tables = answer_counts(answered, labels, guessed, classes)
    tables |= _own_tables(assignment, stage, features, labels, answered.labels)
    return Report(False, {}, {"class_counts": torch.bincount(labels, minlength=classes).tolist(), **tables})


def _own_tables(
    assignment: Assignment, stage: Evaluate, features: Tensor, labels: Tensor, common: Tensor
) -> dict[str, list[int]]:
    """Count the answers with heads that the site makes for itself, beside `common` ones; a head that it lacks has none.

    Its own head answers beside the common ones, as it does when it is used; what it would have alone answers alone.
    """
    experiment = assignment.experiment
    received = tensors_sha256(answering_tensors(experiment.method, assignment.model))
    made = own_heads(assignment, stage)
    if made is None:
        return {}
    kept = {**made.heads[PERSONAL], HELD: made.held} if made.heads[PERSONAL] else {}
    assignment.site.statistics.save_tested(kept, task=assignment.step.task, model=received, content=HEAD)
    tables = dict.fromkeys(stage.tables, [0] * experiment.classes**2)
    for name, tensors in made.heads.items():
        assignment.model.load_state_dict(tensors, strict=False)
        answered = predictions(experiment.method, assignment.model, features).labels
        if name == PERSONAL:
            answered = torch.where(own_answers(common, answered, made.held), answered, common)
        tables[name] = confusion_counts(answered, labels, experiment.classes).flatten().tolist()
    return tables


def _tested(assignment: Assignment, tasks: Iterable[int]) -> tuple[Tensor, Tensor]:
    """Return labels Tensor[N] and features Tensor[N, D] of the site's test images of tasks.

    Task by task: frozen weights make the same of each, and the images of one at a time stand in memory.
    """
    labels, features = [torch.empty(0, dtype=torch.int64)], list[Tensor]()
    for task in tasks:
        images = assignment.site.test_images(assignment.experiment.stream.classes(task))
        if len(images):
            labels.append(images.labels)
            features.append(assignment.embed_once(images, "features").float())
    return torch.cat(labels), torch.cat(features) if features else torch.empty(0)


def _counts(assignment: Assignment, samples: Samples) -> list[int]:
    return samples.class_counts(assignment.experiment.classes)
