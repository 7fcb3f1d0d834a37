"""Sources of the randomness of privacy: seeded in a simulation, which must repeat; secret at a real site."""

from __future__ import annotations

import math
import os
import secrets
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from dynammo_core.support.seeding import seeded_generator


class Noise(Protocol):
    """A source of independent random numbers, float64."""

    def uniform(self, count: int) -> Tensor:
        """Return `count` numbers in [0, 1), Tensor[N]."""
        ...

    def normal(self, count: int) -> Tensor:
        """Return `count` standard normal numbers, Tensor[N]."""
        ...

    def generator(self) -> torch.Generator:
        """Return a generator for randomness other than noise, such as augmentation."""
        ...


class SeededNoise:
    """Gives the same numbers for the same seed: for simulations, where nobody needs protection."""

    def __init__(self, *parts: str | int) -> None:
        self._generator = seeded_generator(*parts)

    def uniform(self, count: int) -> Tensor:
        """Implement `Noise.uniform`."""
        return torch.rand(count, generator=self._generator, dtype=torch.float64)

    def normal(self, count: int) -> Tensor:
        """Implement `Noise.normal`."""
        return torch.randn(count, generator=self._generator, dtype=torch.float64)

    def generator(self) -> torch.Generator:
        """Implement `Noise.generator`."""
        return self._generator


class SystemNoise:
    """Gives numbers from the operating system's cryptographic generator: no seed, nothing that a server could repeat.

    PyTorch's own generator will not do: it keeps 32 bits of a seed. A normal number is the sum of four, halved, so that
    the bits of a float do not tell which one was drawn (Holohan and Braghin, arXiv 2107.10138, as in opacus).
    """

    def uniform(self, count: int) -> Tensor:
        """Implement `Noise.uniform`."""
        bits = np.frombuffer(os.urandom(8 * count), dtype=np.uint64) >> np.uint64(11)
        return torch.from_numpy(bits.astype(np.float64)) * 2.0**-53

    def normal(self, count: int) -> Tensor:
        """Implement `Noise.normal` by Box and Muller's transform."""
        radius = (-2 * torch.log1p(-self.uniform(4 * count))).sqrt()
        return (radius * torch.cos(2 * math.pi * self.uniform(4 * count))).view(4, count).sum(dim=0) / 2

    def generator(self) -> torch.Generator:
        """Implement `Noise.generator`."""
        return torch.Generator().manual_seed(secrets.randbits(63))


def poisson_batches(owner: Tensor, rate: float, noise: Noise) -> list[Tensor]:
    """Draw the batches of an epoch of 1 / rate steps, as indices: each owner enters each with probability `rate`.

    Batches differ in size and may be empty: the accountant's gain from sampling relies on it.

    Args:
        owner: for each of N samples the number of the image or patient that it counts for, without gaps, Tensor[N].
        rate: probability of entering a batch, with all samples of the owner.
        noise: source of the draws.
    """
    count = int(owner.max()) + 1 if len(owner) else 0
    return [torch.nonzero((noise.uniform(count) < rate)[owner]).flatten() for _ in range(steps_of_epoch(rate))]


def steps_of_epoch(rate: float) -> int:
    """Return the number of steps in which a sample enters a batch once on average."""
    return max(1, round(1 / rate))
