"""Rules on each number by itself: the median and the trimmed mean over sites (Yin et al. 2018, arXiv 1803.01498).

Deviation from the paper, where all sites have equally many samples: sites have voices of different weight.
"""

from __future__ import annotations

import torch
from torch import Tensor


def median(updates: Tensor, weights: Tensor, liars: int) -> Tensor:
    """Return each number's weighted median over sites (definition 1): half of the voices say less, half say more.

    If a value divides the voices into exact halves, it is the mean of the middle two. No number leaves the range of
    what honest sites sent while they have more than half of the voices.
    """
    ordered, heard = _ordered(updates, weights)
    half, rounding = heard[-1] / 2, 1e-9 * heard[-1]
    lower = (heard < half - rounding).sum(dim=0, keepdim=True)
    upper = (heard <= half + rounding).sum(dim=0, keepdim=True)
    return (ordered.gather(0, lower) + ordered.gather(0, upper)).squeeze(0) / 2


def trimmed_mean(updates: Tensor, weights: Tensor, liars: int) -> Tensor:
    """Return each number's weighted mean over sites without `liars` of the loudest voices at each end (definition 2).

    With equal voices, that leaves out the `liars` largest and smallest. If nobody would be left, since only few sites
    hold a class, it is the median.
    """
    total, trimmed = weights.sum(), liars * weights.max()
    if total <= 2 * trimmed:
        return median(updates, weights, liars)
    ordered, heard = _ordered(updates, weights)
    before = torch.cat([torch.zeros_like(heard[:1]), heard[:-1]])
    kept = (heard.clamp_max(total - trimmed) - before.clamp_min(trimmed)).clamp_min(0)
    return (kept * ordered).sum(dim=0) / kept.sum(dim=0)


def _ordered(updates: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return each number's values in ascending order, and the voices up to and with each, both Tensor[K, P]."""
    ordered, sites = updates.sort(dim=0)
    return ordered, weights[sites].cumsum(dim=0)
