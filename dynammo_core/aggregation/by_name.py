"""The aggregators that a configuration can name: each is made from the number of liars and whether to mix."""

from __future__ import annotations

from functools import partial

from dynammo_core.aggregation.blocks import Aggregator, BlockAggregator
from dynammo_core.aggregation.class_aware import class_aware_mean, sample_weighted_mean
from dynammo_core.aggregation.clipping import norm_clipping
from dynammo_core.aggregation.coordinate_wise import median, trimmed_mean
from dynammo_core.aggregation.krum import krum, multi_krum


def mean(liars: int, mixing: bool) -> Aggregator:
    """Return the class-aware mean, which believes every site."""
    return class_aware_mean


def fedavg(liars: int, mixing: bool) -> Aggregator:
    """Return the mean by numbers of samples, which believes every site."""
    return sample_weighted_mean


MEDIAN = partial(BlockAggregator, median)
TRIMMED_MEAN = partial(BlockAggregator, trimmed_mean)
KRUM = partial(BlockAggregator, krum)
MULTI_KRUM = partial(BlockAggregator, multi_krum)
NORM_CLIPPING = partial(BlockAggregator, norm_clipping)
