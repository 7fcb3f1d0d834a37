"""Operators that merge the adapter sets of all tasks into one set, and the table of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynammo_core.support.registry import Registry

if TYPE_CHECKING:
    from dynammo_core.merging.task_sets import MergeOperator

MERGE_OPERATORS: Registry[MergeOperator] = Registry(
    "merge operator",
    "dynammo.merging",
    {
        "mean": "dynammo_core.merging.averages:merge_mean",
        "last": "dynammo_core.merging.averages:merge_last",
        "weighted": "dynammo_core.merging.averages:merge_weighted",
        "slerp": "dynammo_core.merging.averages:merge_slerp",
        "fisher": "dynammo_core.merging.fisher:merge_fisher",
        "task_arithmetic": "dynammo_core.merging.operators:TASK_ARITHMETIC",
        "ties": "dynammo_core.merging.operators:TIES",
        "dare": "dynammo_core.merging.operators:DARE",
        "magmax": "dynammo_core.merging.operators:MAGMAX",
        "breadcrumbs": "dynammo_core.merging.operators:BREADCRUMBS",
    },
    accepted="a function that takes TaskSets and returns one set of tensors by name",
)
register_merge_operator = MERGE_OPERATORS.decorator
