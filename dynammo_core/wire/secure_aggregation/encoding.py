"""Updates as integers that add up (weighted tensors in fixed point, counts as they are), and the mean from their sum.

The class-aware mean needs only sums over sites divided by one another: for a tensor, samples times values; for a head's
row, the same with the samples of its class; for batch norm, samples times mean and times (variance + mean^2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dynammo_core.aggregation.batch_norm import MEAN, VARIANCE
from dynammo_core.aggregation.class_aware import row_weights
from dynammo_core.models.heads import head_rows, summed_names
from dynammo_core.models.incremental_model import IncrementalModel
from dynammo_core.plan import Action, Stage
from dynammo_core.support.errors import ProtocolError
from dynammo_core.wire.protocol import Report, lengths_of, names_up, numbers_of
from dynammo_core.wire.secure_aggregation.masking import Vector

FRACTION_BITS = 30
"""Scale of fixed-point numbers: a mean over K sites with W samples is off by K 2^-31 / W at most."""

SCALE = 2.0**FRACTION_BITS
LARGEST = 2.0**62
"""Limit of every sum, half of the ring: a number beyond it would be taken for a negative one."""


@dataclass(frozen=True)
class Total:
    """The sum of what sites encoded.

    Attributes:
        counts: counts by name, over all sites: `class_counts` [C] and, for an evaluation, its tables.
        loss: mean loss per sample; None if the stage trains nothing, or no site trained.
        sums: weighted tensors by name, float64.
    """

    counts: Mapping[str, list[int]]
    loss: float | None
    sums: Mapping[str, Tensor]

    @property
    def class_counts(self) -> list[int]:
        """Return the number of samples of each class, over all sites."""
        return self.counts["class_counts"]

    @property
    def samples(self) -> int:
        """Return the number of samples of all classes and sites."""
        return sum(self.class_counts)

    def as_fields(self) -> dict[str, float | None]:
        """Return for the event log the fields that a plain run logs for each site."""
        return {"samples": self.samples, "loss": self.loss}


class Encoding:
    """The layout of a stage's vector: which numbers stand where.

    Args:
        stage: the stage whose answers are added up.
        model: a model with the structure of the stage's task.
        classes: number C of classes of the experiment.
        sites: the largest number of sites whose vectors are added up.

    Attributes:
        sites: that number.
    """

    def __init__(self, stage: Stage, model: IncrementalModel, classes: int, sites: int) -> None:
        state = model.state_dict()
        self._like = {name: state[name] for name in names_up(model, stage)}
        self._rows, self._summed = head_rows(model), summed_names(model)
        names = numbers_of(stage, private=False)
        self._counts = {name: length for name, length in lengths_of(classes).items() if name in names}
        self._has_loss = stage.action is Action.FIT
        self.sites = sites
        self._largest = LARGEST / sites
        self._lengths = [*self._counts.values(), int(self._has_loss), *(like.numel() for like in self._like.values())]

    def __len__(self) -> int:
        return sum(self._lengths)

    def encode(self, report: Report) -> Vector:
        """Encode a checked report as a vector, [N] integers modulo 2^64; zeros if it abstains.

        Raises:
            ProtocolError: a number is so large that sums would be ambiguous.
        """
        if report.abstained:
            return np.zeros(len(self), dtype=np.uint64)
        samples = sum(report.class_counts)
        parts = [torch.tensor(report.numbers[name], dtype=torch.int64) for name in self._counts]
        if self._has_loss:
            parts.append(self._fixed("loss", torch.tensor([report.numbers["loss"]], dtype=torch.float64) * samples))
        parts += [self._fixed(name, self._weighted(name, report, samples)).flatten() for name in self._like]
        vector: Vector = torch.cat(parts).numpy().view(np.uint64)
        return vector

    def decode(self, vector: Vector) -> Total:
        """Decode a sum of vectors into what it holds."""
        numbers = torch.from_numpy(vector.view(np.int64).copy())
        parts = iter(torch.split(numbers, self._lengths))
        counts = {name: next(parts).tolist() for name in self._counts}
        loss, samples = next(parts).double() / SCALE, sum(counts["class_counts"])
        sums = {name: next(parts).double().view(like.shape) / SCALE for name, like in self._like.items()}
        return Total(counts, float(loss) / samples if self._has_loss and samples else None, sums)

    def mean(self, total: Total, current: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors that `class_aware_mean` makes of the updates themselves, up to rounding.

        Args:
            total: the sum, over at least one sample.
            current: the server's own tensors: a row whose class no site holds a sample of stays as it is.
        """
        merged: dict[str, Tensor] = {}
        for name, numerator in total.sums.items():
            if name in self._summed:
                mean = numerator
            elif name in self._rows:
                weights = self._by_row(name, total.class_counts)
                mean = torch.where(weights == 0, current[name].double(), numerator / weights.clamp_min(1))
            elif name.endswith(VARIANCE):
                about = total.sums[name.removesuffix(VARIANCE) + MEAN] / total.samples
                mean = (numerator / total.samples - about.square()).clamp_min(0)
            else:
                mean = numerator / total.samples
            merged[name] = mean.to(current[name].dtype)
        return merged

    def _weighted(self, name: str, report: Report, samples: int) -> Tensor:
        tensor: Tensor = report.weights[name].double()
        if name in self._summed:
            return tensor
        if name in self._rows:
            return self._by_row(name, report.class_counts) * tensor
        if name.endswith(VARIANCE):
            tensor = tensor + report.weights[name.removesuffix(VARIANCE) + MEAN].double().square()
        return samples * tensor

    def _by_row(self, name: str, class_counts: Sequence[int]) -> Tensor:
        """Return the weight of each row of a head's tensor, in a shape that broadcasts against it."""
        weights = torch.tensor(row_weights(self._rows[name], class_counts), dtype=torch.float64)
        return weights.view([-1] + [1] * (self._like[name].dim() - 1))

    def _fixed(self, name: str, values: Tensor) -> Tensor:
        scaled = (values * SCALE).round()
        if scaled.numel() and not float(scaled.abs().max()) < self._largest:
            raise ProtocolError(
                f"{name!r} is too large for secure aggregation: {float(values.abs().max()):.3g}, weighted by samples",
                accepted=f"less than {self._largest / SCALE:.3g}",
                remedy="Lower the learning rate if training blew up",
            )
        return scaled.to(torch.int64)
