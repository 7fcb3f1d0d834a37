"""The server's optimiser: the change that the sites make in a round is a step's direction, and not the step itself.

With D the sites' merged weights minus those that they were sent, x, and r the learning rate:

- momentum (FedAvgM, Hsu et al., arXiv 1909.06335): m = b m + D; x + r m;
- adam and yogi (FedAdam and FedYogi, Reddi et al., arXiv 2003.00295): m = b m + (1 - b) D; x + r m / (v^(1/2) + tau).
  There v starts at tau^2 and moves towards D^2: for adam by (1 - b2) (D^2 - v), for yogi by (1 - b2) D^2.

Each stage of a task starts anew, since tensors, and what they are trained for, are others then.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping

import torch
from torch import Tensor

from dynammo_core.aggregation.batch_norm import is_batch_norm_statistic
from dynammo_core.configuration.federation import FederationSettings
from dynammo_core.models.names import remove

FIRST, SECOND = "server_optimizer.m.", "server_optimizer.v."
"""Prefixes of the names, in the archive, of m and v of each tensor, float64."""

LEARNING_RATES: Mapping[str, float] = {"momentum": 1.0, "adam": 0.01, "yogi": 0.01}


def stepped(
    settings: FederationSettings,
    sent: Mapping[str, Tensor],
    merged: Mapping[str, Tensor],
    current: Mapping[str, Tensor],
    rows: Mapping[str, tuple[int, ...]],
    archive: MutableMapping[str, Tensor],
) -> dict[str, Tensor]:
    """Return the weights after a round by the server's optimiser, and keep what it remembers in the archive.

    Batch-norm statistics are as merged. So is a head's row that merging left as it was, since no site has a sample of
    its class: nothing moves it, and what is remembered of it stays.

    Args:
        settings: the optimiser and its rates.
        sent: tensors as they arrived at the sites, by name.
        merged: what the sites' tensors were merged into, by name.
        current: the server's own tensors before the round, which differ from those sent if they were compressed.
        rows: class of each row, for the tensors that belong to heads.
        archive: holds m and v of earlier rounds of the stage.
    """
    after = dict(merged)
    for name, mean in merged.items():
        if is_batch_norm_statistic(name):
            continue
        start = sent[name].double()
        remembered = {prefix: archive[f"{prefix}{name}"] for prefix in (FIRST, SECOND) if f"{prefix}{name}" in archive}
        still = _still(mean, current[name]) if name in rows else torch.tensor(False)
        step, now = _step(settings, mean.double() - start, remembered)
        after[name] = torch.where(still, mean, (start + step).to(mean.dtype))
        for prefix, (before, tensor) in now.items():
            archive[f"{prefix}{name}"] = torch.where(still, before, tensor)
    return after


def _step(
    settings: FederationSettings, change: Tensor, remembered: Mapping[str, Tensor]
) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
    """Return the step, and what was remembered before and is now, by prefix."""
    kind, keeps = settings.server_optimizer, settings.server_momentum
    rate = settings.server_learning_rate or LEARNING_RATES[kind]
    first = remembered.get(FIRST, torch.zeros_like(change))
    moved = keeps * first + (change if kind == "momentum" else (1 - keeps) * change)
    if kind == "momentum":
        return rate * moved, {FIRST: (first, moved)}
    second, square = remembered.get(SECOND, torch.full_like(change, settings.server_tau**2)), change.square()
    towards = square - second if kind == "adam" else square * (square - second).sign()
    spread = second + (1 - settings.server_beta_2) * towards
    step = rate * moved / (spread.sqrt() + settings.server_tau)
    return step, {FIRST: (first, moved), SECOND: (second, spread)}


def _still(merged: Tensor, current: Tensor) -> Tensor:
    """Tell of each row whether merging left it as it was, Tensor[R, 1, ...] bool."""
    same = (merged == current).reshape(len(merged), -1).all(dim=1)
    return same.view(-1, *[1] * (merged.dim() - 1))


def forget_rounds(archive: MutableMapping[str, Tensor]) -> None:
    """Remove what the optimiser remembers of the rounds of a stage, once that has ended."""
    remove(archive, FIRST, SECOND)
