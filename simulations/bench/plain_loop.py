"""A round of training as one would write it down: one network, one optimiser, and a loop over all sites' batches."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from dynammo_core.data.samples import FEWEST_SAMPLES, Samples
from dynammo_core.data.transforms import to_input
from dynammo_core.experiment import Experiment
from dynammo_core.models.incremental_model import IncrementalModel
from dynammo_core.plan import Fit, LossContext, Step
from dynammo_core.support.seeding import derive_seed, seeded_generator
from dynammo_core.training import shuffled, train_only
from dynammo_core.wire.protocol import names_up


def site_batches(experiment: Experiment, step: Step, site: int, samples: Samples) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield inputs and labels of the batches that a site trains on in a step, without augmentation.

    A site with too few samples abstains.
    """
    assert isinstance(step.stage, Fit)
    if len(samples) < FEWEST_SAMPLES:
        return
    seed = derive_seed(experiment.config.seed, step.stage.name, step.task, step.round, site)
    for epoch in range(step.stage.optimisation.epochs):
        generator = seeded_generator(seed, "epoch", epoch)
        for index in shuffled(len(samples), step.stage.optimisation.batch_size, generator):
            inputs = to_input(samples.images[index], experiment.config.normalisation, experiment.device)
            yield inputs, samples.labels[index].to(experiment.device)


def trained_network(experiment: Experiment, step: Step) -> tuple[IncrementalModel, torch.optim.Optimizer]:
    """Build the network of a step, of which only what the sites send up changes, and its optimiser."""
    assert isinstance(step.stage, Fit)
    settings, model = step.stage.optimisation, experiment.build_model(step.task).to(experiment.device)
    parameters = train_only(model, set(names_up(model, step.stage)))
    momentum, decay = settings.momentum, settings.weight_decay
    return model, torch.optim.SGD(parameters, lr=settings.learning_rate, momentum=momentum, weight_decay=decay)


def plain_round(experiment: Experiment, step: Step, sites: Sequence[Samples]) -> float:
    """Train on what every site trains on in a step, in one loop; return its processor seconds."""
    assert isinstance(step.stage, Fit)
    started, context = time.process_time(), LossContext(step.task)
    model, optimizer = trained_network(experiment, step)
    for site, samples in enumerate(sites):
        for inputs, labels in site_batches(experiment, step, site, samples):
            optimizer.zero_grad(set_to_none=True)
            step.stage.loss(model, inputs, labels, context).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return time.process_time() - started
