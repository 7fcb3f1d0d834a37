"""Where the randomness of privacy comes from: seeded in a simulation, which must repeat; secret at a real site."""

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
        """Tensor[N] in [0, 1)."""
        ...

    def normal(self, count: int) -> Tensor:
        """Tensor[N], standard normal."""
        ...

    def generator(self) -> torch.Generator:
        """For what need be random, but adds no noise, such as augmentation."""
        ...


class SeededNoise:
    """The same numbers for the same seed: for simulations, where nobody is to be protected."""

    def __init__(self, *parts: str | int) -> None:
        self._generator = seeded_generator(*parts)

    def uniform(self, count: int) -> Tensor:
        """As declared by `Noise`."""
        return torch.rand(count, generator=self._generator, dtype=torch.float64)

    def normal(self, count: int) -> Tensor:
        """As declared by `Noise`."""
        return torch.randn(count, generator=self._generator, dtype=torch.float64)

    def generator(self) -> torch.Generator:
        """As declared by `Noise`."""
        return self._generator


class SystemNoise:
    """Numbers from the operating system's cryptographic generator: no seed, nothing that a server could repeat.

    PyTorch's own generator will not do: it keeps 32 bits of a seed. A normal number is the sum of four, halved, so that
    the bits of a float do not tell which one was drawn (Holohan and Braghin, arXiv 2107.10138, as in opacus).
    """

    def uniform(self, count: int) -> Tensor:
        """As declared by `Noise`."""
        bits = np.frombuffer(os.urandom(8 * count), dtype=np.uint64) >> np.uint64(11)
        return torch.from_numpy(bits.astype(np.float64)) * 2.0**-53

    def normal(self, count: int) -> Tensor:
        """As declared by `Noise`; Box and Muller's transform."""
        radius = (-2 * torch.log1p(-self.uniform(4 * count))).sqrt()
        return (radius * torch.cos(2 * math.pi * self.uniform(4 * count))).view(4, count).sum(dim=0) / 2

    def generator(self) -> torch.Generator:
        """As declared by `Noise`."""
        return torch.Generator().manual_seed(secrets.randbits(63))


def poisson_batches(count: int, rate: float, noise: Noise) -> list[Tensor]:
    """Indices of the batches of an epoch of 1 / rate steps: each sample enters each with probability `rate`.

    Batches differ in size and may be empty: that is what the accountant's gain from sampling stands on.
    """
    return [torch.nonzero(noise.uniform(count) < rate).flatten() for _ in range(steps_of_epoch(rate))]


def steps_of_epoch(rate: float) -> int:
    """Steps in which a sample enters a batch once on average."""
    return max(1, round(1 / rate))
