"""What holds for every robust rule: how much a site may say, and that its update is first mixed with the nearest."""

from __future__ import annotations

import torch
from torch import Tensor


def voices(samples: Tensor, liars: int) -> Tensor:
    """How much each of K sites may say, Tensor[K]: its samples, capped, since what a site claims can be a lie too.

    The cap is the largest c with sum_k min(n_k, c) >= (2 f + 1) c: all voices together are worth at least 2 f + 1 of
    the loudest, so f liars are less than half, whatever they claim. Among 2 f sites or fewer there is no such c, and
    each has one voice: of a class that so few hold, nothing can be learnt that f of them could not have made up.
    """
    fewest = 2 * liars + 1
    if len(samples) < fewest:
        return torch.ones_like(samples)
    # sum_k min(n_k, c) is the least, over j, of the j smallest n_k and (K - j) c.
    smallest = samples.sort().values.cumsum(dim=0)[len(samples) - fewest :]
    cap = (smallest / torch.arange(1, fewest + 1, dtype=samples.dtype)).min()
    return samples.clamp_max(cap)


def mixed(updates: Tensor, weights: Tensor, liars: int) -> Tensor:
    """Each update, Tensor[K, P], as the mean of its K - f nearest, itself among them.

    Nearest neighbour mixing, algorithm 2 of Allouah et al. (arXiv 2302.01772): what honest sites with different classes
    say comes closer together, so that a rule made for equal sites serves. Deviation: the mean is by voices.
    """
    nearest = max(len(updates) - liars, 1)
    chosen = squared_distances(updates).argsort(dim=1, stable=True)[:, :nearest]
    shares = torch.zeros(len(updates), len(updates), dtype=updates.dtype).scatter(1, chosen, weights[chosen])
    return (shares / shares.sum(dim=1, keepdim=True)) @ updates


def squared_distances(updates: Tensor) -> Tensor:
    """Between the rows of Tensor[K, P]: Tensor[K, K]; exactly 0 from an update to itself."""
    return torch.cdist(updates, updates, compute_mode="donot_use_mm_for_euclid_dist").square()
