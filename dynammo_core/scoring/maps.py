"""Whether images of a size pass through a network, and how many at a time keep its maps within bounds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from dynammo_core.scoring.evaluation import BATCH
from dynammo_core.support.errors import ConfigError

MOST_BYTES = 2 * 10**9
"""What the largest maps of one layer may take together. With 128 images of 224 pixels ResNet-18 and the EfficientNets
stay below."""


@torch.no_grad()
def largest_maps(network: nn.Module, image_size: int) -> int:
    """Return the bytes that any one layer reads and writes for one image at most, in float32.

    It is 0 for a network that shapes alone do not pass through, which then gets whole batches.

    Args:
        network: takes images Tensor[B, 3, S, S]; its own tensors are neither read nor copied.
        image_size: side S.
    """
    largest = 0

    def note(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        nonlocal largest
        largest = max(largest, sum(tensor.numel() for tensor in _tensors((*inputs, output))))

    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    shapes = {name: tensor.detach().to("meta") for name, tensor in tensors.items()}
    with ExitStack() as hooks:
        for module in network.modules():
            hooks.callback(setattr, module, "training", module.training)
            module.training = False  # a single image has no batch statistics
            if next(module.children(), None) is None:
                hooks.callback(module.register_forward_hook(note).remove)
        try:
            functional_call(network, shapes, (torch.empty(1, 3, image_size, image_size, device="meta"),))
        except (RuntimeError, NotImplementedError):  # it reads values, or keeps tensors that are no buffers
            return 0
    return largest * torch.finfo(torch.float32).bits // 8


def batch_within(bytes_per_image: int, most: int = MOST_BYTES) -> int:
    """Return the largest power of two, 128 at most, whose images together take no more than so many bytes."""
    fitting = max(most // max(bytes_per_image, 1), 1)
    return min(BATCH, 1 << fitting.bit_length() - 1)


@torch.no_grad()
def require_passage(network: nn.Module, image_size: int, name: str) -> None:
    """Refuse images that are too small for a network, before the first site meets one.

    Args:
        network: takes images Tensor[1, 3, S, S].
        image_size: side S.
        name: what the network is called in messages.

    Raises:
        ConfigError: such images do not pass.
    """
    try:
        network.eval()(torch.zeros(1, 3, image_size, image_size))
    except (RuntimeError, AssertionError) as error:  # timm asserts sizes
        raise ConfigError(
            f"images of {image_size} pixels do not pass through {name} ({str(error).splitlines()[0]})",
            remedy="Raise data.image_size or backbone.image_size; under adapters, method.padding: 1 helps too",
        ) from error


def _tensors(values: tuple[Any, ...]) -> Iterator[Tensor]:
    return (value for value in values if isinstance(value, Tensor))
