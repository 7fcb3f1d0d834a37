"""How the sites' updates become one model: the table of aggregators."""

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
        "median": "dynammo_core.aggregation.by_name:MEDIAN",
        "trimmed_mean": "dynammo_core.aggregation.by_name:TRIMMED_MEAN",
        "krum": "dynammo_core.aggregation.by_name:KRUM",
        "multi_krum": "dynammo_core.aggregation.by_name:MULTI_KRUM",
        "norm_clipping": "dynammo_core.aggregation.by_name:NORM_CLIPPING",
    },
    accepted="a function from the number of sites that may lie, and whether to mix, to an Aggregator",
)
"""By name: from the number of sites that may lie, and whether updates are mixed with the nearest ones, to what merges
all sites' updates."""
register_aggregator = AGGREGATORS.decorator
