"""The conversion of stored pixels to a network's input, and random augmentation of training images, one by one."""

from __future__ import annotations

import torch
from torch import Tensor

from dynammo_core.support.errors import ConfigError, unknown_name

# The input statistics that pretrained weights were trained with: timm's Inception constants and ImageNet's own.
NORMALISATIONS: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
AUGMENTATIONS = ("none", "crop", "crop_flip")


def to_input(images: Tensor, normalisation: str, device: torch.device) -> Tensor:
    """Scale to 0..1 and normalise: Tensor[B, C, S, S] uint8 with C = 1 or 3 -> Tensor[B, 3, S, S] float32 on `device`.

    Grey images become RGB with three equal channels before they are normalised. Channels lie last in memory, which
    depthwise convolutions take at twice the speed.

    Raises:
        ConfigError: the normalisation is unknown.
    """
    if normalisation not in NORMALISATIONS:
        raise ConfigError(
            unknown_name("normalisation", normalisation, NORMALISATIONS), accepted=", ".join(NORMALISATIONS)
        )
    mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in NORMALISATIONS[normalisation])
    # The bytes are moved, not the floats: a quarter of the traffic
    scaled = images.to(device).to(torch.float32) / 255
    return ((scaled - mean) / std).contiguous(memory_format=torch.channels_last)


def augment(images: Tensor, kind: str, generator: torch.Generator) -> Tensor:
    """Vary each image by itself: Tensor[B, C, H, W] of any type -> the same shape and type.

    `crop` shifts by up to an eighth of the side in each direction and fills the border by reflection (random crops of
    the reflect-padded image); `crop_flip` then mirrors left and right with probability 1/2.

    Args:
        images: the batch.
        kind: none, crop or crop_flip.
        generator: where all randomness comes from; `none` draws nothing.

    Raises:
        ConfigError: the kind is unknown.
    """
    if kind not in AUGMENTATIONS:
        raise ConfigError(unknown_name("augmentation", kind, AUGMENTATIONS), accepted=", ".join(AUGMENTATIONS))
    if kind == "none":
        return images
    batch, _, height, width = images.shape
    rows = _shifted(batch, height, generator)
    columns = _shifted(batch, width, generator)
    if kind == "crop_flip":
        flip = torch.rand(batch, 1, generator=generator, device=generator.device) < 0.5
        columns = torch.where(flip, columns.flip(1), columns)
    which = torch.arange(batch, device=images.device)[:, None, None]
    rows, columns = rows.to(images.device)[:, :, None], columns.to(images.device)[:, None, :]
    return images.permute(0, 2, 3, 1)[which, rows, columns].permute(0, 3, 1, 2).contiguous()


def _shifted(batch: int, side: int, generator: torch.Generator) -> Tensor:
    """Draw where each row (or column) of the shifted images comes from, Tensor[B, side]."""
    reach = side // 8
    shift = torch.randint(-reach, reach + 1, (batch, 1), generator=generator, device=generator.device)
    position = (torch.arange(side, device=generator.device) + shift).abs()
    return side - 1 - (side - 1 - position).abs()
