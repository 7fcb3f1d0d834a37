"""Descend a stage's loss on a site's images: for what goes up, and for what the site keeps."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from client.steps.assignment import Assignment, EpochBatches
from dynammo_core.plan import Fit, LossContext
from dynammo_core.training import fit, train_only


def descend(assignment: Assignment, stage: Fit, batches: EpochBatches, names: Iterable[str]) -> float:
    """Train the named tensors of the model for one round, and return the mean loss per sample in the last epoch."""
    parameters = train_only(assignment.model, set(names))
    context = LossContext(assignment.step.task, batches.level, assignment.teacher)

    def loss(inputs: Tensor, labels: Tensor) -> Tensor:
        with assignment.experiment.autocast():
            return stage.loss(assignment.model, inputs, labels, context)

    proximal = assignment.experiment.config.federation.proximal
    return fit(parameters, loss, batches, stage.optimisation, round_=assignment.step.round, proximal=proximal)
