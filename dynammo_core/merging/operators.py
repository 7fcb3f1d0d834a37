"""Merging adapter sets across tasks: many sets in, one set out, so that what is deployed never grows.

A table of pure functions on state dicts; all sets have the same names and shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor

from dynammo_core.aggregation.batch_norm import is_batch_norm_statistic, pool_batch_norm

State = Mapping[str, Tensor]
MergeOperator = Callable[[Sequence[State]], dict[str, Tensor]]


def merge_mean(sets: Sequence[State]) -> dict[str, Tensor]:
    """The average of all tasks' sets (DynaMMo, arXiv 2404.14099, equation 3), batch-norm statistics pooled."""
    merged = pool_batch_norm(sets, [1.0] * len(sets))
    for name, first in sets[0].items():
        if not is_batch_norm_statistic(name):
            merged[name] = torch.stack([tensors[name].double() for tensors in sets]).mean(dim=0).to(first.dtype)
    return merged


def merge_last(sets: Sequence[State]) -> dict[str, Tensor]:
    """The newest set alone: a control for the average, since each set inherits from the one before."""
    return {name: tensor.clone() for name, tensor in sets[-1].items()}


MERGE_OPERATORS: Mapping[str, MergeOperator] = MappingProxyType({"mean": merge_mean, "last": merge_last})
