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
from dynammo_core.plan import PERSONAL, Evaluate, Fit, LossContext, OwnHeads, Sums
from dynammo_core.scoring.own_choice import folds, gains
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

    That is decided in folds of patients: what is trained on the others has to lower the loss on each fold's images,
    each class alike, by more than one standard error. What was received was trained on these images too, so that in
    doubt it stays.
    """
    if len(samples) < FEWEST_SAMPLES:
        return {}
    experiment = assignment.experiment
    assignment = replace(assignment, step=replace(assignment.step, stage=stage, round=stage.rounds - 1))
    names = names_up(assignment.model, stage)
    received = {name: tensor.clone() for name, tensor in take(assignment.model, names).items()}
    batches = EpochBatches(assignment, samples, start_level(stage.inputs, experiment.config.data.augmentation))
    fold, common = folds(samples.labels, samples.patient_ids), _losses(assignment, stage, batches)
    own = torch.empty_like(common)
    for number in range(int(fold.max()) + 1):
        tested = fold == number
        if int((~tested).sum()) < FEWEST_SAMPLES:
            return {}
        descend(assignment, stage, batches.among(~tested), names)
        own[tested] = _losses(assignment, stage, batches.among(tested))
        assignment.model.load_state_dict(received, strict=False)
    gain, error = gains((common - own).unsqueeze(0), samples.labels, samples.patient_ids)
    logger.info("one more round for the site itself: loss lower by %.3g±%.3g", float(gain), float(error))
    if not bool(gain > error):
        return {}
    descend(assignment, stage, batches, names)
    return take(assignment.model, names)


@torch.no_grad()
def _losses(assignment: Assignment, stage: Fit, batches: EpochBatches) -> Tensor:
    """Compute the loss of each image by itself, Tensor[N] float64, in the order of the batches' samples."""
    context = LossContext(assignment.step.task, batches.level, assignment.teacher)
    assignment.model.eval()
    losses = [stage.loss(assignment.model, inputs, labels, context) for inputs, labels in batches.one_by_one()]
    return torch.stack(losses).double().cpu()


def solved_heads(assignment: Assignment, solve: OwnHeads, images: Samples) -> Mapping[str, Sums]:
    """Solve heads from features of the site's images, task by task, as they were embedded when they were summed."""
    tasks = assignment.experiment.stream.tasks
    places = [torch.isin(images.labels, torch.tensor(task)).nonzero().flatten() for task in tasks]
    learnt = [assignment.embed_once(images.subset(part), "features").float() for part in places if len(part)]
    order = torch.cat(places)
    return solve(
        assignment.model,
        torch.cat(learnt) if learnt else torch.empty(0),
        images.labels[order],
        [images.patient_ids[place] for place in order.tolist()],
    )
