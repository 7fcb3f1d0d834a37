"""Adapters: the small residual networks between the stages of a frozen backbone that learn what is new in a task."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dynammo_core.models.names import Form

GROUPS = 8

REDUCTION = 8
"""How many times fewer channels the convolutions of low rank have between them: w = C / 8."""


class Adapter(nn.Module):
    """x + alpha * f(x), where f is a 3x3 convolution, BN, ReLU, a transposed 3x3 convolution, BN, ReLU.

    Source: the adapter of DynaMMo (arXiv 2404.14099), taken from ACL (arXiv 2304.09042). Deviations: padding 1 in both
    convolutions by default, unlike the paper, because unpadded ones need maps of at least 3x3 pixels, which the last
    stage of a small image lacks; and no convolution biases, because the batch norm behind them cancels them.

    On wide maps that is millions of weights, so two other forms of both convolutions have fewer: `low_rank`, 1x1 down
    to few channels and 3x3 among them, then back (the bottleneck of He et al., arXiv 1512.03385); and `depthwise`, a
    3x3 kernel for each channel and 1x1 across channels (MobileNets, arXiv 1704.04861).

    Args:
        channels: width C of the maps Tensor[B, C, H, W].
        alpha: start value of the learnable scale; 0.02 in the paper.
        padding: padding of both convolutions, 0 (the paper) or 1; the maps keep their size either way.
        norm: batch (the paper), or group: eight groups of channels (Wu and He, arXiv 1803.08494), each image by itself.
        form: of both convolutions; full is the paper's.
    """

    def __init__(self, channels: int, alpha: float, padding: int = 1, norm: str = "batch", form: Form = "full") -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.tensor(float(alpha)))
        first, between, second = _convolutions(form, channels, padding)
        self.residual = nn.Sequential(
            first,
            _norm(norm, between),
            nn.ReLU(inplace=True),
            second,
            _norm(norm, channels),
            nn.ReLU(inplace=True),
        )

    def forward(self, maps: Tensor) -> Tensor:
        """Return the adapted maps, Tensor[B, C, H, W]."""
        adapted: Tensor = maps + self.alpha * self.residual(maps)
        return adapted


class AdapterSet(nn.ModuleList):
    """The adapters that one task learns, one for each insertion point of a backbone.

    Args:
        channels: width of the maps at each insertion point (`Backbone.channels`).
        alpha: start value of every adapter's scale.
        padding: padding of every adapter's convolutions.
        norm: norm of every adapter, batch or group.
        form: of every adapter's convolutions.
    """

    def __init__(
        self, channels: Sequence[int], alpha: float, padding: int = 1, norm: str = "batch", form: Form = "full"
    ) -> None:
        super().__init__(Adapter(width, alpha, padding, norm, form) for width in channels)


LAST_NORM = "residual.4."
"""The tensors that an adapter's alpha is folded into."""


def folded_alphas(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return an equivalent state of an adapter set, each alpha moved into the last norm, so that 1 or -1 is left.

    alpha relu(g x + b) = sign relu(|alpha| g x + |alpha| b): a scale passes through a ReLU, a sign does not.
    """
    folded = dict(state)
    for name, alpha in state.items():
        stem, dot, last = name.rpartition(".")
        if last == "alpha":
            folded[name] = torch.where(alpha < 0, -torch.ones_like(alpha), torch.ones_like(alpha))
            for affine in (f"{stem}{dot}{LAST_NORM}weight", f"{stem}{dot}{LAST_NORM}bias"):
                folded[affine] = alpha.abs() * state[affine]
    return folded


class BatchNorm(nn.BatchNorm2d):
    """Batch norm without the step counter, an integer that a fixed momentum never reads and that cannot be averaged."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.num_batches_tracked = None

    def _load_from_state_dict(self, *args: Any) -> None:
        # torch's own version adds the counter to any plain dict of tensors, and a strict load then refuses it.
        nn.Module._load_from_state_dict(self, *args)


def _convolutions(form: Form, channels: int, padding: int) -> tuple[nn.Module, int, nn.Module]:
    """Make the convolution into an adapter and the transposed one out of it, with the number of channels between."""

    def kernels(kind: type[nn.Conv2d | nn.ConvTranspose2d], width: int, groups: int = 1) -> nn.Module:
        return kind(width, width, kernel_size=3, padding=padding, groups=groups, bias=False)

    def mixing(before: int, after: int) -> nn.Module:
        return nn.Conv2d(before, after, kernel_size=1, bias=False)

    if form == "full":
        return kernels(nn.Conv2d, channels), channels, kernels(nn.ConvTranspose2d, channels)
    if form == "low_rank":
        few = max(channels // REDUCTION, 1)
        first = nn.Sequential(mixing(channels, few), kernels(nn.Conv2d, few))
        return first, few, nn.Sequential(kernels(nn.ConvTranspose2d, few), mixing(few, channels))
    first = nn.Sequential(kernels(nn.Conv2d, channels, channels), mixing(channels, channels))
    second = nn.Sequential(kernels(nn.ConvTranspose2d, channels, channels), mixing(channels, channels))
    return first, channels, second


def _norm(kind: str, channels: int) -> nn.Module:
    return nn.GroupNorm(math.gcd(GROUPS, channels), channels) if kind == "group" else BatchNorm(channels)
