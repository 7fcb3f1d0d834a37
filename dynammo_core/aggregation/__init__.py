"""How the sites' updates become one model: the table of aggregators."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

from dynammo_core.aggregation.blocks import Aggregator, BlockAggregator
from dynammo_core.aggregation.class_aware import class_aware_mean
from dynammo_core.aggregation.clipping import norm_clipping
from dynammo_core.aggregation.coordinate_wise import median, trimmed_mean
from dynammo_core.aggregation.krum import krum, multi_krum

AGGREGATORS: Mapping[str, Callable[[int, bool], Aggregator]] = MappingProxyType(
    {
        "mean": lambda liars, mixing: class_aware_mean,
        "median": partial(BlockAggregator, median),
        "trimmed_mean": partial(BlockAggregator, trimmed_mean),
        "krum": partial(BlockAggregator, krum),
        "multi_krum": partial(BlockAggregator, multi_krum),
        "norm_clipping": partial(BlockAggregator, norm_clipping),
    }
)
"""By name: from the number of sites that may lie, and whether updates are mixed with the nearest ones, to what merges
all sites' updates."""
