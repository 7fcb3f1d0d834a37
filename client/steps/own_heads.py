"""Make a site's own heads, as its method asks: by one more round of training, or solved from features of its images."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from client.steps.assignment import Assignment, EpochBatches, start_level, take
from client.steps.descent import descend
from dynammo_core.data.samples import FEWEST_SAMPLES
from dynammo_core.plan import Fit, LearnsFrom, LossContext, OwnHeads, Sums
from dynammo_core.scoring.own_choice import folds, gains
from dynammo_core.wire.protocol import names_up

logger = logging.getLogger("dynammo.personal")


@torch.enable_grad()
def one_more_round(assignment: Assignment, stage: Fit) -> Sums:
    """Do the last round of a stage once more, for the site itself; return nothing unless that clearly serves it better.

    That is decided in folds of patients: what is trained on the others has to lower the loss on each fold's images,
    each class alike, by more than one standard error. What was received was trained on these images too, so that in
    doubt it stays. A site that tests and does not train has no round.
    """
    experiment, step = assignment.experiment, replace(assignment.step, stage=stage, round=stage.rounds - 1)
    if assignment.site.index not in experiment.config.federation.taking_part(testing=False):
        return {}
    assignment = replace(assignment, step=step)
    samples = stage.learns_from(assignment.site.rehearsal(step.task))
    if len(samples) < FEWEST_SAMPLES:
        return {}
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
    gain, error = gains((common - own).unsqueeze(0), samples.labels)
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


def solved_heads(assignment: Assignment, solve: OwnHeads, learns_from: LearnsFrom) -> Mapping[str, Sums]:
    """Solve heads from features of the site's images, task by task, as they were embedded when they were summed."""
    images, tasks = learns_from(assignment.site.rehearsal(assignment.step.task)), assignment.experiment.stream.tasks
    places = [torch.isin(images.labels, torch.tensor(task)).nonzero().flatten() for task in tasks]
    learnt = [assignment.embed_once(images.subset(part), "features").float() for part in places if len(part)]
    order = torch.cat(places)
    return solve(
        assignment.model,
        torch.cat(learnt) if learnt else torch.empty(0),
        images.labels[order],
        [images.patient_ids[place] for place in order.tolist()],
    )
