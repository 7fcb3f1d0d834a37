"""Make a site's own heads, as its method asks: by one more round of training, or solved from features of its images."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from client.steps.assignment import Assignment, EpochBatches, start_level, take
from client.steps.descent import descend
from dynammo_core.data.samples import FEWEST_SAMPLES, Samples
from dynammo_core.models.ridge.personal import OwnImages
from dynammo_core.plan import PERSONAL, Evaluate, Fit, OwnHeads, Sums
from dynammo_core.scoring.own_choice import folds, gained, gains
from dynammo_core.wire.protocol import names_up

logger = logging.getLogger("dynammo.personal")


class Made(NamedTuple):
    """Heads by the table that counts their answers, and the classes whose images they were made of, Tensor[K]."""

    heads: Mapping[str, Sums]
    held: Tensor


def own_heads(assignment: Assignment, stage: Evaluate) -> Made | None:
    """Make the heads that a stage asks a site for; None if it asks for none.

    A site that tests and does not train has none, and takes up no image to train on.
    """
    learns_from = stage.own_round.learns_from if stage.own_round is not None else stage.learns_from
    if learns_from is None:
        return None
    if assignment.site.index not in assignment.experiment.config.federation.taking_part(testing=False):
        return Made({PERSONAL: {}}, torch.empty(0, dtype=torch.int64))
    images = learns_from(assignment.site.rehearsal(assignment.step.task))
    held = torch.unique(images.labels)
    if stage.own_round is not None:
        return Made({PERSONAL: one_more_round(assignment, stage.own_round, images)}, held)
    return Made(solved_heads(assignment, stage.own_heads, images), held) if stage.own_heads is not None else None


@torch.enable_grad()
def one_more_round(assignment: Assignment, stage: Fit, samples: Samples) -> Sums:
    """Do the last round of a stage once more, for the site itself; return nothing unless that clearly serves it better.

    That is decided in folds of patients: what is trained on the others has to gain more than one standard error on each
    fold's images (`gained`), each class alike. What was received was trained on these images too, so in doubt it stays.
    """
    if len(samples) < FEWEST_SAMPLES:
        return {}
    experiment = assignment.experiment
    assignment = replace(assignment, step=replace(assignment.step, stage=stage, round=stage.rounds - 1))
    names = names_up(assignment.model, stage)
    received = {name: tensor.clone() for name, tensor in take(assignment.model, names).items()}
    batches = EpochBatches(assignment, samples, start_level(stage.inputs, experiment.config.data.augmentation))
    features = assignment.embed_once(samples, "features").float().to(experiment.device)
    fold, (common, answers) = folds(samples.labels, samples.patient_ids), _asked(assignment, features)
    own, own_answers = torch.empty_like(common), torch.empty_like(answers)
    for number in range(int(fold.max()) + 1):
        tested = fold == number
        if int((~tested).sum()) < FEWEST_SAMPLES:
            return {}
        descend(assignment, stage, batches.among(~tested), names)
        own[tested], own_answers[tested] = _asked(assignment, features[tested.to(features.device)])
        assignment.model.load_state_dict(received, strict=False)
    rows = torch.tensor([row for head in experiment.method.decision.heads(assignment.model) for row in head.rows])
    outputs, answered = torch.stack([common, own]), torch.stack([answers, own_answers])
    better = gained(outputs, answered, rows, samples.labels, samples.patient_ids)
    gain, error = (of_both.tolist()[-1] for of_both in gains(better, samples.labels, samples.patient_ids))
    logger.info("one more round for the site itself: nearer to the labels by %.3g±%.3g", gain, error)
    if gain <= error:
        return {}
    descend(assignment, stage, batches, names)
    return take(assignment.model, names)


@torch.no_grad()
def _asked(assignment: Assignment, features: Tensor) -> tuple[Tensor, Tensor]:
    """Return the log-probability of each row, Tensor[N, R], and the answers, Tensor[N], both on the CPU."""
    decision, model = assignment.experiment.method.decision, assignment.model
    model.eval()
    probabilities = torch.cat(decision.probabilities(model, features), dim=1).double()
    logits = probabilities.clamp_min(torch.finfo(torch.float64).tiny).log()
    return logits.cpu(), decision.predict(model, features).labels.cpu()


def solved_heads(assignment: Assignment, solve: OwnHeads, images: Samples) -> Mapping[str, Sums]:
    """Solve heads from features of the site's images, task by task, as they were embedded when they were summed."""
    tasks = assignment.experiment.stream.tasks
    places = [torch.isin(images.labels, torch.tensor(task)).nonzero().flatten() for task in tasks]
    learnt = [assignment.embed_once(images.subset(part), "features").float() for part in places if len(part)]
    features, order = torch.cat(learnt) if learnt else torch.empty(0), torch.cat(places)
    labels, summed = (each[order].to(features.device) for each in (images.labels, _summed(assignment, images)))
    patients = [images.patient_ids[place] for place in order.tolist()]
    return solve(assignment.model, OwnImages(features, labels, patients, summed))


def _summed(assignment: Assignment, images: Samples) -> Tensor:
    """Tell which images the server's sums contain, Tensor[N] bool, by the answers that it says are in them.

    What these consisted of a hospital has noted; in a simulation it is the classes that reached the site by then.
    """
    site, taken = assignment.site, assignment.taken
    if site.sums is not None:
        return torch.tensor(site.sums.holds(taken, images), dtype=torch.bool)
    experiment = assignment.experiment
    arrived = [experiment.arrivals.new(site.index, experiment.steps[number].task) for number in taken]
    return torch.isin(images.labels, torch.tensor([label for classes in arrived for label in classes]))
