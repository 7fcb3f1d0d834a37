"""Client-level differential privacy (McMahan et al., arXiv 1710.06963): it hides whether a site took part.

The server sees each site's update and is trusted; the merged tensors, and so every model of the run, are protected.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from dynammo_core.privacy.noise import Noise


def shortened_update(weights: Mapping[str, Tensor], received: Mapping[str, Tensor], clip: float) -> dict[str, Tensor]:
    """Return `weights` moved towards what the site received until the norm of the difference is at most `clip`."""
    update = _update(weights, received, clip)
    return {name: (received[name].double() + update[name]).to(tensor.dtype) for name, tensor in weights.items()}


def noised_mean(
    sent_up: Sequence[Mapping[str, Tensor]],
    current: Mapping[str, Tensor],
    *,
    names: Sequence[str],
    sites: int,
    clip: float,
    noise_multiplier: float,
    noise: Noise,
) -> dict[str, Tensor]:
    """Return the server's tensors after a round: current + (sum of shortened updates + noise) / sites.

    One site more or less changes the sum by `clip` at most, and noise has the deviation `noise_multiplier * clip` in
    each coordinate. Sites that abstain or fail add nothing; the sum is divided by all, however many answered. Updates
    are not weighted by numbers of images, which would make a site's part as large as it claims.

    Args:
        sent_up: tensors by name, for each site that answered.
        current: the server's own tensors.
        names: names of the tensors, in a fixed order.
        sites: number of sites that are asked in each round.
        clip: norm that each update is shortened to, whatever the site did itself.
        noise_multiplier: noise multiplier of the Gaussian mechanism.
        noise: source of the noise.
    """
    updates = [_update(weights, current, clip) for weights in sent_up]
    merged = {}
    for name in names:
        value = current[name]
        drawn = noise.normal(value.numel()).view(value.shape)
        total = noise_multiplier * clip * drawn + sum(update[name] for update in updates)
        merged[name] = (value.double() + total / sites).to(value.dtype)
    return merged


def _update(weights: Mapping[str, Tensor], received: Mapping[str, Tensor], clip: float) -> dict[str, Tensor]:
    """Return the shortened difference of each tensor, by name, float64."""
    update = {name: tensor.double() - received[name].double() for name, tensor in weights.items()}
    length = torch.stack([tensor.norm() for tensor in update.values()]).norm()
    return {name: tensor * (clip / length).clamp_max(1) for name, tensor in update.items()}
