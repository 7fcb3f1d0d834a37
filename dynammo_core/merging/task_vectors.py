"""Operators on task vectors, which are what each set has learnt since the initial adapters.

Each set inherits from the one before, so its task vector holds all that was learnt until then: the base is the set that
the first task started from, as in MagMax (arXiv 2407.06322), and not the set before. Papers that add vectors up do so
for tasks learnt apart; here, where vectors share their beginnings, they are averaged, and `scale` times T is the sum.
Operators prune or choose entries of convolutions and matrices. An adapter's scale, biases and batch norms need every
number: they are averaged.
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


def merge_task_vectors(combine: Combine, task_sets: TaskSets, *, whole: bool = False) -> dict[str, Tensor]:
    """Return the initial set plus the scaled combination of the task vectors; batch norms and scales are averaged.

    Args:
        combine: what is done with the vectors.
        task_sets: the sets.
        whole: whether the convolutions of all adapters are combined as one vector, and not each by itself.
    """
    bases = {name: start.double() for name, start in task_sets.initial.items() if start.dim() > 1}
    vectors = [
        torch.stack([tensors[name].double() - base for tensors in task_sets.sets]) for name, base in bases.items()
    ]
    if whole:
        together = combine(torch.cat([own.flatten(1) for own in vectors], dim=1), task_sets.density)
        combined = torch.split(together, [base.numel() for base in bases.values()])
    else:
        combined = tuple(combine(own, task_sets.density) for own in vectors)
    merged = merge_mean(task_sets)
    for (name, base), change in zip(bases.items(), combined, strict=True):
        merged[name] = (base + task_sets.scale * change.view_as(base)).to(task_sets.initial[name].dtype)
    return merged


def task_arithmetic(vectors: Tensor, density: float) -> Tensor:
    """Average the vectors (Ilharco et al., arXiv 2212.04089): a scale takes more or less of what was learnt."""
    return vectors.mean(dim=0)


def ties(vectors: Tensor, density: float) -> Tensor:
    """Trim entries, elect signs, and average entries that agree (Yadav et al., arXiv 2306.01708, algorithm 1).

    The largest entries are those of the whole vector, as in the paper.
    """
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

WHOLE = frozenset({"ties"})
"""Operators that compare entries of different tensors."""


def _largest(vectors: Tensor, share: float, at_least: int = 1) -> Tensor:
    """Mark the entries of each vector that are among its largest `share`, rounded up, Tensor[T, ...] bool."""
    flat = vectors.abs().flatten(1)
    count = math.ceil(round(share * flat.shape[1], 6)) if at_least else int(share * flat.shape[1])
    chosen = torch.zeros_like(flat, dtype=torch.bool).scatter_(1, flat.topk(count, dim=1).indices, True)
    return chosen.view_as(vectors)
