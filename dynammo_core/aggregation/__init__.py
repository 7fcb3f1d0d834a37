"""Aggregators, which merge the sites' updates into one model, and the table of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from dynammo_core.support.registry import Registry

if TYPE_CHECKING:
    from dynammo_core.aggregation.blocks import Aggregator

    MakeAggregator = Callable[[int, bool], Aggregator]

AGGREGATORS: Registry[MakeAggregator] = Registry(
    "aggregator",
    "dynammo.aggregators",
    {
        "mean": "dynammo_core.aggregation.by_name:mean",
        "fedavg": "dynammo_core.aggregation.by_name:fedavg",
        "median": "dynammo_core.aggregation.by_name:MEDIAN",
        "trimmed_mean": "dynammo_core.aggregation.by_name:TRIMMED_MEAN",
        "krum": "dynammo_core.aggregation.by_name:KRUM",
        "multi_krum": "dynammo_core.aggregation.by_name:MULTI_KRUM",
        "norm_clipping": "dynammo_core.aggregation.by_name:NORM_CLIPPING",
    },
    accepted="a function that takes the number of liars and whether to mix, and returns an Aggregator",
)
"""Aggregators by name: functions from the number of sites that may lie, and whether updates are mixed with the nearest
ones, to what merges all sites' updates."""
register_aggregator = AGGREGATORS.decorator
