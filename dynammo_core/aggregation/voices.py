"""Limits to how much a site counts, since what it claims can be a lie, and the mixing of an update with its nearest."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def voices(samples: Tensor, liars: int) -> Tensor:
    """Return each of K sites' voice, Tensor[K]: its number of samples, capped, since a site's claim can be a lie too.

    The cap is the largest c with sum_k min(n_k, c) >= (2 f + 1) c: all voices together are worth at least 2 f + 1 of
    the loudest, so f liars are less than half, whatever they claim. Among 2 f sites or fewer there is no such c, and
    each has one voice: about a class that so few hold, nothing can be learnt that f of them could not have made up.
    """
    fewest = 2 * liars + 1
    return torch.ones_like(samples) if len(samples) < fewest else samples.clamp_max(_loudest(samples, fewest))


def shares_kept(samples: Tensor, largest: float) -> Tensor:
    """Return the factor by which each of K sites' samples count, Tensor[K], so that no site exceeds a share of all.

    The cap is the largest c with c <= `largest` sum_k min(n_k, c). A single site keeps all; if there are too few sites
    for such a share, all count alike.
    """
    if len(samples) < 2:
        return torch.ones_like(samples)
    cap = _loudest(samples, 1 / largest) if len(samples) * largest >= 1 else samples.min()
    return (cap / samples).clamp_max(1)


def _loudest(samples: Tensor, times: float) -> Tensor:
    """Return the largest c with sum_k min(n_k, c) >= `times` c, `times` at least 1 and at most K."""
    # sum_k min(n_k, c) is the minimum over j of (sum of the j smallest n_k) + (K - j) c.
    capped = min(math.ceil(times), len(samples))
    smallest = samples.sort().values.cumsum(dim=0)[len(samples) - capped :]
    return (smallest / (times - torch.arange(capped - 1, -1, -1, dtype=samples.dtype))).min()


def mixed(updates: Tensor, weights: Tensor, liars: int) -> Tensor:
    """Replace each update, Tensor[K, P], by the mean of its K - f nearest ones, itself among them.

    Nearest neighbour mixing, algorithm 2 of Allouah et al. (arXiv 2302.01772): what honest sites with different classes
    say comes closer together, so that a rule made for equal sites serves. Deviation: the mean is weighted by voices.
    """
    nearest = max(len(updates) - liars, 1)
    chosen = squared_distances(updates).argsort(dim=1, stable=True)[:, :nearest]
    shares = torch.zeros(len(updates), len(updates), dtype=updates.dtype).scatter(1, chosen, weights[chosen])
    return (shares / shares.sum(dim=1, keepdim=True)) @ updates


def squared_distances(updates: Tensor) -> Tensor:
    """Compute squared distances between the rows of Tensor[K, P], Tensor[K, K]; exactly 0 on the diagonal."""
    return torch.cdist(updates, updates, compute_mode="donot_use_mm_for_euclid_dist").square()
