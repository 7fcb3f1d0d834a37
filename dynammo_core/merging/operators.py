"""The table of operators that merge the tasks' adapter sets into one, so that the deployed model never grows."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor

from dynammo_core.merging import MERGE_OPERATORS
from dynammo_core.merging.averages import merge_last
from dynammo_core.merging.task_sets import TaskSets
from dynammo_core.merging.task_vectors import TASK_VECTORS, WHOLE, merge_task_vectors

TASK_ARITHMETIC, TIES, DARE, MAGMAX, BREADCRUMBS = (
    partial(merge_task_vectors, combine, whole=name in WHOLE) for name, combine in TASK_VECTORS.items()
)
"""Operators on task vectors, in the order of their table."""


def merge(operator: str | Sequence[str], task_sets: TaskSets) -> dict[str, Tensor]:
    """Merge the sets of all tasks into one; a single set is returned as it is, whatever the operator.

    Args:
        operator: a name in the table, or one for the adapter at each insertion point, first to last.
        task_sets: the sets.
    """
    if len(task_sets.sets) == 1:
        return merge_last(task_sets)
    if isinstance(operator, str):
        return MERGE_OPERATORS[operator](task_sets)
    merged: dict[str, Tensor] = {}
    for place, name in enumerate(operator):
        merged |= MERGE_OPERATORS[name](task_sets.at(place))
    return merged
