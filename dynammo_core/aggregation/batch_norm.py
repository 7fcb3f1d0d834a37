"""Batch-norm statistics are pooled, never averaged: the variance of a mixture holds the spread of its means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

MEAN, VARIANCE = ".running_mean", ".running_var"


def is_batch_norm_statistic(name: str) -> bool:
    """Tell whether a tensor of that name is a running mean or variance."""
    return name.endswith((MEAN, VARIANCE))


def pool_batch_norm(updates: Sequence[Mapping[str, Tensor]], weights: Sequence[float]) -> dict[str, Tensor]:
    """Compute the weighted mean and variance of the mixture: E[mean_k], and E[var_k + (mean_k - mean)^2].

    The latter is E[var_k + mean_k^2] - mean^2, without the cancellation.

    Args:
        updates: tensors by name; only pairs of `.running_mean` and `.running_var` are read.
        weights: one non-negative weight per update; the sum is positive.

    Returns:
        The pooled statistics alone, by name, in their own dtype.
    """
    share = torch.tensor(weights, dtype=torch.float64) / sum(weights)
    pooled: dict[str, Tensor] = {}
    for name in updates[0]:
        if not name.endswith(MEAN):
            continue
        stem = name.removesuffix(MEAN)
        means = torch.stack([update[name] for update in updates]).double()
        variances = torch.stack([update[stem + VARIANCE] for update in updates]).double()
        mean = torch.einsum("k,kc->c", share, means)
        variance = torch.einsum("k,kc->c", share, variances + (means - mean).square())
        pooled[name] = mean.to(updates[0][name].dtype)
        pooled[stem + VARIANCE] = variance.to(updates[0][name].dtype)
    return pooled
