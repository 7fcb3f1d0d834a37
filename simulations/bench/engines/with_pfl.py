"""The same job by pfl-research, Apple's simulator of federated learning (https://github.com/apple/pfl-research)."""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING, Any

import torch
from pfl.aggregate.simulate import SimulatedBackend  # type: ignore[import-not-found]  # not a dependency
from pfl.algorithm.base import NNAlgorithmParams  # type: ignore[import-not-found]
from pfl.algorithm.federated_averaging import FederatedAveraging  # type: ignore[import-not-found]
from pfl.callback.base import TrainingProcessCallback  # type: ignore[import-not-found]
from pfl.data.dataset import Dataset  # type: ignore[import-not-found]
from pfl.data.federated_dataset import FederatedDataset  # type: ignore[import-not-found]
from pfl.hyperparam.base import NNTrainHyperParams  # type: ignore[import-not-found]
from pfl.metrics import Metrics  # type: ignore[import-not-found]
from pfl.model.pytorch import PyTorchModel  # type: ignore[import-not-found]
from torch import Tensor, nn

from dynammo_core.plan import LossContext
from simulations.bench.plain_loop import site_batches, trained_network

if TYPE_CHECKING:
    from simulations.bench.engines.job import Job


class Network(nn.Module):
    """The job's network as pfl wants it: with its loss."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        self.step: Any = job.steps[0]
        self.network, _ = trained_network(job.experiment, self.step)

    def loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of a batch."""
        value: Tensor = self.step.stage.loss(self.network, inputs, labels, LossContext(0))
        return value

    def metrics(self, inputs: Tensor, labels: Tensor) -> dict[str, Any]:
        """Return nothing: only training is measured."""
        return {}


class Batches(Dataset):  # type: ignore[misc]
    """One site's images in the batches in which every engine sees them."""

    def __init__(self, job: Job, site: int, round_: int) -> None:
        samples = job.sites[site]
        super().__init__(raw_data=[samples.images, samples.labels], user_id=str(site))
        self._batches_of = (job, site, round_)

    def iter(self, batch_size: int | None) -> Any:
        """Yield the batches of the round."""
        job, site, round_ = self._batches_of
        return site_batches(job.experiment, job.steps[round_], site, job.sites[site])


class Clock(TrainingProcessCallback):  # type: ignore[misc]
    """Notes when each round ends."""

    def __init__(self) -> None:
        self.times = [time.perf_counter()]

    def on_train_begin(self, *, model: Any) -> Any:
        """Start the clock."""
        self.times = [time.perf_counter()]
        return Metrics()

    def after_central_iteration(self, aggregate_metrics: Any, model: Any, *, central_iteration: int) -> Any:
        """Note the time, and go on."""
        self.times.append(time.perf_counter())
        return False, Metrics()


def run_pfl(job: Job) -> list[float]:
    """Run the job's rounds, and return the seconds of each."""
    sites, steps, clock = len(job.sites), job.steps, Clock()
    settings = steps[0].stage.optimisation  # type: ignore[attr-defined]  # a stage that trains
    drawn = itertools.count()
    data = FederatedDataset(
        lambda site: Batches(job, site, min(next(drawn) // sites, len(steps) - 1)),
        itertools.cycle(range(sites)).__next__,
    )
    model = Network(job)

    def optimizer(parameters: Any, lr: float) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=lr, momentum=settings.momentum, weight_decay=settings.weight_decay)

    FederatedAveraging().run(
        NNAlgorithmParams(len(steps), len(steps) + 1, sites, None),
        SimulatedBackend(training_data=data, val_data=None),
        PyTorchModel(model, optimizer, torch.optim.SGD(model.parameters(), lr=1.0)),
        NNTrainHyperParams(
            local_batch_size=settings.batch_size,
            local_num_epochs=settings.epochs,
            local_learning_rate=settings.learning_rate,
        ),
        callbacks=[clock],
        send_metrics_to_platform=False,
    )
    return [later - earlier for earlier, later in itertools.pairwise(clock.times)]
