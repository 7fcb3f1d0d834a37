"""Krum: the update that lies closest to its neighbours (Blanchard et al. 2017, arXiv 1703.02757)."""

from __future__ import annotations

import torch
from torch import Tensor

from dynammo_core.aggregation.voices import squared_distances


def krum(updates: Tensor, weights: Tensor, liars: int) -> Tensor:
    """Return the one update with the lowest score."""
    return updates[_by_score(updates, weights, liars)[0]]


def multi_krum(updates: Tensor, weights: Tensor, liars: int) -> Tensor:
    """Return the mean, weighted by voices, of the updates with the lowest scores: all except `liars` of them.

    A liar among them has a score no higher than the worst honest one's.
    """
    chosen = _by_score(updates, weights, liars)[: max(len(updates) - liars, 1)]
    return torch.einsum("k,kp->p", weights[chosen] / weights[chosen].sum(), updates[chosen])


def scores(updates: Tensor, liars: int) -> Tensor:
    """Sum the squared distances to the nearest K - liars - 2 other updates (section 3), at least one, Tensor[K].

    The paper's guarantee needs K >= 2 liars + 3. For a head's row, fewer sites may hold the class.
    """
    nearest = max(len(updates) - liars - 2, 1)
    return squared_distances(updates).sort(dim=1).values[:, 1 : 1 + nearest].sum(dim=1)


def _by_score(updates: Tensor, weights: Tensor, liars: int) -> list[int]:
    """Sort indices by score; on ties, which two sites alone always have, by shorter update, then by louder site.

    Scores are rounded to float32, so that the order in which sites are added up decides nothing.
    """
    keys = (scores(updates, liars), updates.norm(dim=1), -weights)
    return sorted(range(len(updates)), key=list(zip(*(key.float().tolist() for key in keys), strict=True)).__getitem__)
