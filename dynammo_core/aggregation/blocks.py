"""The skeleton of the robust aggregators: numbers judged together form a block, and one rule merges every block."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from types import EllipsisType

import torch
from torch import Tensor

from dynammo_core.aggregation.batch_norm import MEAN, VARIANCE, is_batch_norm_statistic
from dynammo_core.aggregation.class_aware import Update, row_weights
from dynammo_core.aggregation.voices import mixed, voices
from dynammo_core.support.errors import ConfigError

Aggregator = Callable[
    [Sequence[Update], Mapping[str, tuple[int, ...]], Mapping[str, Tensor], Collection[str]], dict[str, Tensor]
]
"""Merges updates, sorted by site, into one set of tensors; it also takes the class of each head row, the server's own
tensors and the names of those that are summed: the arguments of `class_aware_mean`."""

Rule = Callable[[Tensor, Tensor, int], Tensor]
"""Merges a block: updates, received minus the server's own, of the K sites that may speak about it, Tensor[K, P], their
voices, Tensor[K], and the number of sites that may lie become one update, Tensor[P]. All tensors are float64."""

Block = Mapping[str, list[int] | EllipsisType]
"""Names of tensors, and which of their rows belong to the block."""


@dataclass(frozen=True)
class BlockAggregator:
    """Merges tensors block by block.

    The blocks: each row of each head, judged among the sites that hold its class (a row that nobody holds stays as it
    is); the means of all batch-norm layers, and after them the variances; everything else. Units differ between
    blocks, so no distance mixes them. Takes memory for a few times K P float64 numbers.

    Attributes:
        rule: merges one block.
        liars: number of sites that may lie.
        mixing: whether each update is first mixed with the nearest ones.
    """

    rule: Rule
    liars: int
    mixing: bool

    def __call__(
        self,
        updates: Sequence[Update],
        rows: Mapping[str, tuple[int, ...]],
        current: Mapping[str, Tensor],
        summed: Collection[str] = (),
    ) -> dict[str, Tensor]:
        """Merge all sites' updates into one set of tensors.

        Raises:
            ConfigError: one of the tensors is summed.
        """
        names = list(updates[0].weights)
        _refuse_sums(names, summed)
        merged = {name: current[name].clone() for name in names}
        samples = [update.samples for update in updates]
        statistics = [name for name in names if is_batch_norm_statistic(name)]
        shared: Block = {name: ... for name in names if name not in rows and name not in statistics}
        for block, weights in [(shared, samples), *_row_blocks(names, rows, updates)]:
            received = [update.weights for update, weight in zip(updates, weights, strict=True) if weight]
            if block and received:
                start = _flat(current, block)
                stacked = torch.stack([_flat(tensors, block) for tensors in received])
                _put(merged, block, start + self._merge(stacked - start, [weight for weight in weights if weight]))
        if statistics:
            self._merge_statistics(merged, [update.weights for update in updates], current, statistics, samples)
        return merged

    def _merge(self, differences: Tensor, samples: Sequence[int]) -> Tensor:
        weights = voices(torch.tensor(samples, dtype=torch.float64), self.liars)
        near = mixed(differences, weights, self.liars) if self.mixing else differences
        return self.rule(near, weights, self.liars)

    def _merge_statistics(
        self,
        merged: MutableMapping[str, Tensor],
        received: Sequence[Mapping[str, Tensor]],
        current: Mapping[str, Tensor],
        names: Sequence[str],
        samples: Sequence[int],
    ) -> None:
        """Merge means, then variances about the merged mean, var_k + (mean_k - mean)^2, as `pool_batch_norm` does.

        A rule that picks, averages or shortens never makes a variance negative; a site's own negative one counts as 0.
        """
        mean_block: Block = {name: ... for name in names if name.endswith(MEAN)}
        variance_block: Block = {name.removesuffix(MEAN) + VARIANCE: ... for name in mean_block}
        own_mean, own_variance = _flat(current, mean_block), _flat(current, variance_block)
        means = torch.stack([_flat(tensors, mean_block) for tensors in received])
        variances = torch.stack([_flat(tensors, variance_block) for tensors in received]).clamp_min(0)
        mean = own_mean + self._merge(means - own_mean, samples)
        own_about = own_variance + (own_mean - mean).square()
        about = own_about + self._merge(variances + (means - mean).square() - own_about, samples)
        _put(merged, mean_block, mean)
        _put(merged, variance_block, about.clamp_min(0))  # below 0 by rounding alone


def _row_blocks(
    names: Sequence[str], rows: Mapping[str, tuple[int, ...]], updates: Sequence[Update]
) -> list[tuple[Block, list[int]]]:
    """Return a block per head and class, its rows of weights and biases, and each site's samples of that class."""
    blocks: dict[tuple[str, int], dict[str, list[int] | EllipsisType]] = {}
    samples: dict[tuple[str, int], list[int]] = {}
    for name in names:
        classes = rows.get(name, ())
        by_site = [row_weights(classes, update.class_counts) for update in updates]
        for row in dict.fromkeys(classes):
            key = name.rpartition(".")[0], row
            blocks.setdefault(key, {})[name] = [index for index, own in enumerate(classes) if own == row]
            samples[key] = [own[classes.index(row)] for own in by_site]
    return [(block, samples[key]) for key, block in blocks.items()]


def _flat(tensors: Mapping[str, Tensor], block: Block) -> Tensor:
    """Return a block's numbers as a vector, Tensor[P]."""
    return torch.cat([tensors[name][part].double().flatten() for name, part in block.items()])


def _put(merged: MutableMapping[str, Tensor], block: Block, values: Tensor) -> None:
    """Write a block's numbers, Tensor[P], where they belong."""
    start = 0
    for name, part in block.items():
        place = merged[name][part]
        merged[name][part] = values[start : start + place.numel()].view(place.shape).to(place.dtype)
        start += place.numel()


def _refuse_sums(names: Collection[str], summed: Collection[str]) -> None:
    for name in names:
        if name in summed:
            raise ConfigError(
                f"federation.aggregator: {name!r} is a sum over samples, and a robust aggregator would "
                "drop the samples of honest sites from it",
                accepted="mean",
                remedy="Set federation.aggregator: mean, or choose a method that trains by gradients",
            )
