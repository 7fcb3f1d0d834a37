"""Merging adapter sets across tasks: many sets in, one set out, so that what is deployed never grows."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import MappingProxyType

from torch import Tensor

from dynammo_core.merging.averages import merge_last, merge_mean, merge_slerp, merge_weighted
from dynammo_core.merging.task_sets import MergeOperator, TaskSets
from dynammo_core.merging.task_vectors import TASK_VECTORS, merge_task_vectors

MERGE_OPERATORS: Mapping[str, MergeOperator] = MappingProxyType(
    {
        "mean": merge_mean,
        "last": merge_last,
        "weighted": merge_weighted,
        "slerp": merge_slerp,
        **{name: partial(merge_task_vectors, combine) for name, combine in TASK_VECTORS.items()},
    }
)


def merge(operator: str, given: TaskSets) -> dict[str, Tensor]:
    """One set from the sets of all tasks, by the operator of that name; of one set, that set, whatever the operator."""
    if len(given.sets) == 1:
        return merge_last(given)
    return MERGE_OPERATORS[operator](given)
