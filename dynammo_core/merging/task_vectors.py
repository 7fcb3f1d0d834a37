"""Operators on task vectors, which are what each set has learnt since the initial adapters.

Each set inherits from the one before, so its task vector holds all that was learnt until then: the base is the set that
the first task started from, as in MagMax (arXiv 2407.06322), and not the set before. Papers that add vectors up do so
for tasks learnt apart; here, where vectors share their beginnings, they are averaged, and `scale` times T is the sum.
Operators prune or choose entries of convolutions. An adapter's scale and batch norms need every number: they are
averaged.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from dynammo_core.merging.averages import merge_mean
from dynammo_core.merging.task_sets import TaskSets

OUTLIERS = 0.01
"""Share of the largest entries that model breadcrumbs leave out (the paper's gamma of 0.99)."""

Combine = Callable[[Tensor, float], Tensor]
"""Combines the task vectors Tensor[T, ...] of one tensor into one vector, given the density."""


def merge_task_vectors(combine: Combine, task_sets: TaskSets) -> dict[str, Tensor]:
    """Return the initial set plus the scaled combination of the task vectors; batch norms and scales are averaged."""
    merged = merge_mean(task_sets)
    for name, start in task_sets.initial.items():
        if start.dim() > 1:
            base = start.double()
            vectors = torch.stack([tensors[name].double() - base for tensors in task_sets.sets])
            merged[name] = (base + task_sets.scale * combine(vectors, task_sets.density)).to(start.dtype)
    return merged


def task_arithmetic(vectors: Tensor, density: float) -> Tensor:
    """Average the vectors (Ilharco et al., arXiv 2212.04089): a scale takes more or less of what was learnt."""
    return vectors.mean(dim=0)


def ties(vectors: Tensor, density: float) -> Tensor:
    """Trim entries, elect signs, and average entries that agree (Yadav et al., arXiv 2306.01708, algorithm 1)."""
    trimmed = vectors * _largest(vectors, density)
    agreeing = trimmed * (trimmed.sign() == trimmed.sum(dim=0).sign())
    return agreeing.sum(dim=0) / (agreeing != 0).sum(dim=0).clamp_min(1)


def dare(vectors: Tensor, density: float) -> Tensor:
    """Drop entries at random, scale up the others, and average (Yu et al., arXiv 2311.03099, equation 1).

    Draws from PyTorch's generator, which the server seeds for each task.
    """
    kept = torch.rand_like(vectors) < density
    return (vectors * kept / density).mean(dim=0)


def magmax(vectors: Tensor, density: float) -> Tensor:
    """Return the largest change of each entry (Marczak et al., arXiv 2407.06322, equation 2)."""
    return vectors.gather(0, vectors.abs().argmax(dim=0, keepdim=True)).squeeze(0)


def breadcrumbs(vectors: Tensor, density: float) -> Tensor:
    """Leave out the very largest and the small entries, and average (Davari and Belilovsky, arXiv 2312.06795)."""
    kept = _largest(vectors, min(1.0, density + OUTLIERS)) & ~_largest(vectors, OUTLIERS, at_least=0)
    return (vectors * kept).mean(dim=0)


TASK_VECTORS: Mapping[str, Combine] = MappingProxyType(
    {
        "task_arithmetic": task_arithmetic,
        "ties": ties,
        "dare": dare,
        "magmax": magmax,
        "breadcrumbs": breadcrumbs,
    }
)


def _largest(vectors: Tensor, share: float, at_least: int = 1) -> Tensor:
    """Mark the entries of each vector that are among its largest `share`, rounded up, Tensor[T, ...] bool."""
    flat = vectors.abs().flatten(1)
    count = math.ceil(round(share * flat.shape[1], 6)) if at_least else int(share * flat.shape[1])
    chosen = torch.zeros_like(flat, dtype=torch.bool).scatter_(1, flat.topk(count, dim=1).indices, True)
    return chosen.view_as(vectors)
