"""The average across sites: head rows by who holds the class, batch norm pooled, the rest by sample number."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dynammo_core.aggregation.batch_norm import is_batch_norm_statistic, pool_batch_norm
from dynammo_core.aggregation.voices import shares_kept
from dynammo_core.models.heads import OTHERS


@dataclass(frozen=True)
class Update:
    """What one site sent in one round.

    Attributes:
        weights: tensors by name.
        class_counts: [C] samples of each class that the site trained on, as it says.
        kept: share of its samples that counts in a mean, the same for each class; 1 for all.
    """

    weights: Mapping[str, Tensor]
    class_counts: Sequence[int]
    kept: float = 1.0

    @property
    def samples(self) -> int:
        """Return the number of samples that the site trained on."""
        return sum(self.class_counts)

    @property
    def counted(self) -> list[int]:
        """Return the samples of each class that count in a mean, [C], rounded to whole ones."""
        return [round(self.kept * count) for count in self.class_counts]


def row_weights(rows: Sequence[int], class_counts: Sequence[int]) -> list[int]:
    """Return a site's weight for each row of a head: its number of samples of that row's class.

    The row `OTHERS` counts the samples of all classes that the head does not name.
    """
    named = {row for row in rows if row != OTHERS}
    unnamed = sum(count for label, count in enumerate(class_counts) if label not in named)
    return [unnamed if row == OTHERS else class_counts[row] for row in rows]


def held_to_share(updates: Sequence[Update], largest: float) -> list[Update]:
    """Limit the updates so that none weighs more in a mean than the share `largest` of all, whatever it claims."""
    kept = shares_kept(torch.tensor([update.samples for update in updates], dtype=torch.float64), largest).tolist()
    return [replace(update, kept=part) for update, part in zip(updates, kept, strict=True)]


def class_aware_mean(
    updates: Sequence[Update],
    rows: Mapping[str, tuple[int, ...]],
    current: Mapping[str, Tensor],
    summed: Collection[str] = (),
) -> dict[str, Tensor]:
    """Average all sites' updates into one set of tensors, in float64, whatever the order in which sites answered.

    What a single site sends stays as it is, so that a run with one site is the method itself. The mean of several is
    biased: a row learns nothing from sites without its class, although their images would tell it what it is not.

    Args:
        updates: at least one, sorted by site, each with at least one sample and the same names.
        rows: class of each row, for the tensors that belong to heads.
        current: the server's own tensors: a row whose class none of several sites holds a sample of stays as it is.
        summed: names of statistics, such as Gram matrices, that are added up and not averaged.
    """
    first = updates[0].weights
    kept = torch.tensor([update.kept for update in updates], dtype=torch.float64)
    shares = kept * torch.tensor([update.samples for update in updates], dtype=torch.float64)
    merged = pool_batch_norm([update.weights for update in updates], shares.tolist())
    for name in first:
        if is_batch_norm_statistic(name):
            continue
        if name in summed:
            merged[name] = _added([update.weights[name] for update in updates])
            continue
        stacked = torch.stack([update.weights[name] for update in updates]).double()
        if name in rows and len(updates) > 1:
            counts = [row_weights(rows[name], update.class_counts) for update in updates]
            weights = kept.unsqueeze(1) * torch.tensor(counts, dtype=torch.float64)
            merged[name] = _row_mean(stacked, weights, current[name])
        else:
            merged[name] = torch.einsum("k,k...->...", shares / shares.sum(), stacked).to(first[name].dtype)
    return merged


def sample_weighted_mean(
    updates: Sequence[Update],
    rows: Mapping[str, tuple[int, ...]],
    current: Mapping[str, Tensor],
    summed: Collection[str] = (),
) -> dict[str, Tensor]:
    """Average updates by numbers of samples alone, heads too (FedAvg: McMahan et al., arXiv 1602.05629, algorithm 1).

    The control for `class_aware_mean`, whose arguments it takes. Batch-norm statistics are pooled here as well.
    """
    return class_aware_mean(updates, {}, current, summed)


def _added(tensors: Sequence[Tensor]) -> Tensor:
    """Return the sum of tensors, added up in float64 one by one: all of them side by side may fill the memory."""
    total = tensors[0].double().clone()
    for tensor in tensors[1:]:
        total += tensor
    return total.to(tensors[0].dtype)


def _row_mean(stacked: Tensor, weights: Tensor, current: Tensor) -> Tensor:
    """Compute each row's weighted mean over sites: `stacked` is [K, R, ...], `weights` [K, R], `current` [R, ...]."""
    totals = weights.sum(dim=0)
    shares = weights / totals.where(totals > 0, 1.0)
    mean = torch.einsum("kr,kr...->r...", shares, stacked)
    nobody = (totals == 0).view(-1, *[1] * (current.dim() - 1))
    return torch.where(nobody, current.double(), mean).to(current.dtype)
