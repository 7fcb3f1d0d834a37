"""From stored pixels to a network's input: conversion, size, and random augmentation of training images."""

from __future__ import annotations

from functools import lru_cache
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dynammo_core.support.devices import moved
from dynammo_core.support.errors import ConfigError, unknown_name

Normalisation: TypeAlias = tuple[tuple[float, float, float], tuple[float, float, float]]
"""Mean and standard deviation of each channel of images scaled to 0..1."""

# The input statistics that pretrained weights were trained with: timm's Inception constants and ImageNet's own.
NORMALISATIONS: dict[str, Normalisation] = {
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
AUGMENTATIONS = ("none", "flip", "crop", "crop_flip")


def to_input(images: Tensor, normalisation: str | Normalisation, device: torch.device) -> Tensor:
    """Scale to 0..1 and normalise: Tensor[B, C, S, S] uint8 with C = 1 or 3 -> Tensor[B, 3, S, S] float32 on `device`.

    Grey images become RGB with three equal channels before they are normalised. Channels lie last in memory, which
    depthwise convolutions take at twice the speed.

    Raises:
        ConfigError: the normalisation is unknown.
    """
    mean, std = _statistics(normalisation, device)
    # The bytes are moved, not the floats: a quarter of the traffic
    scaled = moved(images, device).to(torch.float32, copy=True).div_(255)
    centred = scaled.sub_(mean) if scaled.shape[1] == len(mean) else scaled - mean
    return centred.div_(std).contiguous(memory_format=torch.channels_last)


def statistics_of(normalisation: str | Normalisation) -> Normalisation:
    """Return the mean and the standard deviation that a normalisation stands for, by its name or as they are.

    Raises:
        ConfigError: the name is unknown.
    """
    if not isinstance(normalisation, str):
        return normalisation
    if normalisation not in NORMALISATIONS:
        raise ConfigError(
            unknown_name("normalisation", normalisation, NORMALISATIONS), accepted=", ".join(NORMALISATIONS)
        )
    return NORMALISATIONS[normalisation]


@lru_cache(maxsize=8)
def _statistics(normalisation: str | Normalisation, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return mean and deviation of each channel, Tensor[3, 1, 1], on the device, where they are sent once."""
    mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in statistics_of(normalisation))
    return mean, std


def augment(images: Tensor, kind: str, generator: torch.Generator) -> Tensor:
    """Vary each image by itself: Tensor[B, C, H, W] of any type -> the same shape and type.

    `crop` shifts by up to an eighth of the side in each direction and fills the border by reflection (random crops of
    the reflect-padded image); `flip` mirrors left and right with probability 1/2; `crop_flip` does both.

    Args:
        images: the batch, on the device that is to vary it.
        kind: none, flip, crop or crop_flip.
        generator: where all randomness comes from, the same whatever the device; `none` draws nothing.

    Raises:
        ConfigError: the kind is unknown.
    """
    if kind not in AUGMENTATIONS:
        raise ConfigError(unknown_name("augmentation", kind, AUGMENTATIONS), accepted=", ".join(AUGMENTATIONS))
    if kind == "none":
        return images
    batch, _, height, width = images.shape
    device = images.device
    rows, columns = (torch.arange(side, device=device).expand(batch, side) for side in (height, width))
    if "crop" in kind:
        rows, columns = (_shifted(places, generator) for places in (rows, columns))
    if "flip" in kind:
        drawn = torch.rand(batch, 1, generator=generator, device=generator.device)
        columns = torch.where(moved(drawn, device) < 0.5, columns.flip(1), columns)
    which = torch.arange(batch, device=device)[:, None, None]
    shifted = images.permute(0, 2, 3, 1)[which, rows[:, :, None], columns[:, None, :]]
    return shifted.permute(0, 3, 1, 2).contiguous()


def _shifted(places: Tensor, generator: torch.Generator) -> Tensor:
    """Draw a shift for each image, and return where its rows (or columns) come from, Tensor[B, side] as `places`."""
    batch, side = places.shape
    reach = side // 8
    shift = torch.randint(-reach, reach + 1, (batch, 1), generator=generator, device=generator.device)
    position = (places + moved(shift, places.device)).abs()
    return side - 1 - (side - 1 - position).abs()


class Resize(nn.Module):
    """Resizes images inside a network, so that networks that see images at sizes of their own share the same images.

    As `F.interpolate` does, bilinearly and with antialiasing, but by a product with a matrix, which goes into every
    format of an exported model, and which a GPU computes in one way.

    Args:
        before: side of the images that come; others are resized, too, more slowly.
        side: side of those that leave.
    """

    def __init__(self, before: int, side: int) -> None:
        super().__init__()
        self.side = side
        # Part of the module, since one that a tracer made would serve nobody else; of no file, since it follows.
        self.register_buffer("matrix", _interpolation(before, side), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return Tensor[B, C, side, side] of square images Tensor[B, C, S, S]."""
        before = images.shape[-1]
        if before == self.side:
            return images
        matrix: Tensor = self.get_buffer("matrix")
        if before != matrix.shape[1]:
            matrix = _interpolation(before, self.side).to(images.device)
        return matrix @ images @ matrix.T


def _interpolation(before: int, after: int) -> Tensor:
    """Return what resizing multiplies each column of an image by, Tensor[after, before]."""
    columns = torch.eye(before).view(1, 1, before, before)
    matrix: Tensor = F.interpolate(columns, (after, before), mode="bilinear", antialias=True)
    return matrix.view(after, before)
