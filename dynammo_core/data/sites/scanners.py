"""Simulated scanners: each site sees all of its images as through a scanner of its own, drawn by random seed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn import functional as F

from dynammo_core.configuration.scanners import ScannerSettings
from dynammo_core.data.samples import Samples
from dynammo_core.support.seeding import seeded_generator

Part = Callable[[Tensor, Sequence[str], float, torch.Generator], Tensor]
"""Part of a scanner: (images [N, C, S, S] in 0..1, N record ids, strength, site's generator) -> images of that shape.

A part draws the same number of values from the generator whatever the images.
"""

KNOTS = 5


def through_scanner(samples: Samples, settings: ScannerSettings, *, seed: int, site: int) -> Samples:
    """Return the samples as one site's scanner shows them: uint8 as before, each image by itself.

    What a site draws depends on the seed, the kind and the site, and the noise on an image also on its record: so an
    image looks the same whenever it is loaded, in training and as an exemplar. A grey image stays grey, and as RGB with
    three equal channels it becomes the same.

    Args:
        samples: N images.
        settings: kind and strength; `same` changes nothing.
        seed: random seed of the experiment.
        site: index of the site.
    """
    if settings.kind == "same" or not len(samples):
        return samples
    images = samples.images[:].to(torch.float32) / 255
    for name in SCANNERS[settings.kind]:
        generator = seeded_generator(seed, "scanner", name, site)
        images = PARTS[name](images, samples.record_ids, settings.strength, generator).clamp(0, 1)
    return replace(samples, images=(images * 255).round().to(torch.uint8))


def _contrast(images: Tensor, _: Sequence[str], strength: float, generator: torch.Generator) -> Tensor:
    """Vary gamma within 1/4..4, contrast within 1/2..2 about the middle, brightness by up to a quarter of the range."""
    draws: list[float] = (strength * (2 * torch.rand(3, generator=generator) - 1)).tolist()
    gamma, gain, offset = draws
    return (images ** math.pow(4, gamma) - 0.5) * math.pow(2, gain) + 0.5 + offset / 4


def _stain(images: Tensor, _: Sequence[str], strength: float, generator: torch.Generator) -> Tensor:
    """Mix colours by a matrix, then map all intensities by a random curve, which may invert them.

    The rows of the matrix sum to 1, so what is grey stays grey.
    """
    mixing = torch.rand(3, 3, generator=generator)
    heights = torch.rand(KNOTS, generator=generator)
    if images.shape[1] == 3:
        matrix = torch.lerp(torch.eye(3), mixing / mixing.sum(dim=1, keepdim=True), strength)
        images = torch.einsum("ij,njhw->nihw", matrix, images).clamp(0, 1)
    position = images * (KNOTS - 1)
    left = position.floor().clamp(max=KNOTS - 2)
    curve = torch.lerp(heights[left.long()], heights[left.long() + 1], position - left)
    return torch.lerp(images, curve, strength)


def _resolution(images: Tensor, _: Sequence[str], strength: float, generator: torch.Generator) -> Tensor:
    """Scale images down, to a quarter of the side at most, and up again."""
    side = images.shape[-1]
    coarse = max(1, round(side / (1 + 3 * strength * float(torch.rand((), generator=generator)))))
    if coarse == side:
        return images
    scanned = F.interpolate(images, size=(coarse, coarse), mode="bilinear", antialias=True)
    return F.interpolate(scanned, size=(side, side), mode="bilinear")


def _noise(images: Tensor, record_ids: Sequence[str], strength: float, generator: torch.Generator) -> Tensor:
    """Add Gaussian noise of up to a quarter of the range, different for each record, the same in all channels."""
    deviation = strength * float(torch.rand((), generator=generator)) / 4
    base = generator.initial_seed()
    shape = (1, *images.shape[-2:])
    drawn = [torch.randn(shape, generator=seeded_generator(base, record)) for record in record_ids]
    return images + deviation * torch.stack(drawn)


PARTS: Mapping[str, Part] = MappingProxyType(
    {"stain": _stain, "contrast": _contrast, "resolution": _resolution, "noise": _noise}
)

SCANNERS: Mapping[str, tuple[str, ...]] = MappingProxyType({**{name: (name,) for name in PARTS}, "mixed": tuple(PARTS)})
"""The parts of each kind of scanner, in the order in which they are applied."""
