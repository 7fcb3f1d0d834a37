"""Norm clipping: no site's update is longer than the median one (norms of updates: Sun et al., arXiv 1911.07963)."""

from __future__ import annotations

import torch
from torch import Tensor


def norm_clipping(updates: Tensor, weights: Tensor, liars: int) -> Tensor:
    """Return the mean, weighted by voices, of updates that are shortened to the median of their lengths.

    The bound is the quantile 1/2 of Andrew et al. (arXiv 1905.03871), taken in each round; for an even number of
    sites, the lower of the middle two. An absurdly long update thus counts no more than a usual one. Its direction is
    believed: against other lies use another aggregator.
    """
    lengths = updates.norm(dim=1, keepdim=True)
    shortened = updates * (lengths.median() / lengths.clamp_min(torch.finfo(lengths.dtype).tiny)).clamp_max(1)
    return torch.einsum("k,kp->p", weights / weights.sum(), shortened)
