"""Operators that merge adapter sets directly: means of several kinds, or the newest set alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dynammo_core.aggregation.batch_norm import is_batch_norm_statistic, pool_batch_norm
from dynammo_core.merging.task_sets import State, TaskSets

NEARLY_PARALLEL = 1e-6
"""Angle in radians below which a great circle counts as a line."""


def merge_mean(task_sets: TaskSets) -> dict[str, Tensor]:
    """Average all tasks' sets (DynaMMo, arXiv 2404.14099, equation 3) and pool batch-norm statistics."""
    merged = pool_batch_norm(task_sets.sets, [1.0] * len(task_sets.sets))
    for name, first in task_sets.sets[0].items():
        if not is_batch_norm_statistic(name):
            merged[name] = (
                torch.stack([tensors[name].double() for tensors in task_sets.sets]).mean(dim=0).to(first.dtype)
            )
    return merged


def merge_weighted(task_sets: TaskSets) -> dict[str, Tensor]:
    """Average the sets, weighted by the images that each was tuned on (as sites in FedAvg, arXiv 1602.05629)."""
    return _weighted_mean(task_sets.sets, task_sets.samples)


def merge_last(task_sets: TaskSets) -> dict[str, Tensor]:
    """Return the newest set alone: a control for the average, since each set inherits from the one before."""
    return {name: tensor.clone() for name, tensor in task_sets.sets[-1].items()}


def merge_slerp(task_sets: TaskSets) -> dict[str, Tensor]:
    """Interpolate on the sphere (Shoemake 1985, https://doi.org/10.1145/325165.325242), keeping the length of weights.

    Spherical interpolation takes two sets: more are added one after the other, the k-th with the share 1/k, which on a
    line would be the mean. The order matters. Each tensor has a sphere of its own; lengths are interpolated.
    """
    merged: State = task_sets.sets[0]
    for position, newer in enumerate(task_sets.sets[1:], start=2):
        merged = _slerp(merged, newer, 1 / position)
    return dict(merged)


def _weighted_mean(sets: Sequence[State], weights: Sequence[float]) -> dict[str, Tensor]:
    merged = pool_batch_norm(sets, weights)
    shares = torch.tensor(weights, dtype=torch.float64) / sum(weights)
    for name, first in sets[0].items():
        if not is_batch_norm_statistic(name):
            stacked = torch.stack([tensors[name].double() for tensors in sets])
            merged[name] = torch.einsum("k,k...->...", shares, stacked).to(first.dtype)
    return merged


def _slerp(older: State, newer: State, share: float) -> dict[str, Tensor]:
    merged = _weighted_mean((older, newer), (1 - share, share))
    for name, first in older.items():
        if first.dim() > 1:  # a scale, or the vectors of a batch norm, have no direction worth keeping
            merged[name] = _on_the_sphere(first.double(), newer[name].double(), share).to(first.dtype)
    return merged


def _on_the_sphere(a: Tensor, b: Tensor, share: float) -> Tensor:
    lengths = a.norm(), b.norm()
    if not all(lengths):
        return torch.lerp(a, b, share)
    units = a / lengths[0], b / lengths[1]
    angle = 2 * torch.atan2((units[0] - units[1]).norm(), (units[0] + units[1]).norm())  # exact where acos is not
    if angle < NEARLY_PARALLEL or torch.pi - angle < NEARLY_PARALLEL:
        return torch.lerp(a, b, share)
    direction = (torch.sin((1 - share) * angle) * units[0] + torch.sin(share * angle) * units[1]) / torch.sin(angle)
    on_it: Tensor = torch.lerp(lengths[0], lengths[1], share) * direction
    return on_it
