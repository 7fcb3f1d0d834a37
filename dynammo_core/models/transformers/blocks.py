"""Where adapters can go in a transformer: one forward pass shows which linear layers its blocks call."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

ATTENTION, MLP = "attn", "mlp"
"""The children by which a block is known: the names that they have in all of timm's transformers."""
NARROW = 4
"""A layer of attention takes tokens if its inputs are at least one in this many of those of the MLP."""


@dataclass(frozen=True)
class Layer:
    """A linear layer of a block.

    Attributes:
        name: of the module, within its block.
        inputs: width of the tokens that it takes.
        outputs: width of those that it gives.
    """

    name: str
    inputs: int
    outputs: int


@dataclass(frozen=True)
class Block:
    """A block of a transformer: attention and MLP, each made of linear layers.

    Attributes:
        name: of the module, within the network.
        layers: the linear layers of both, attention's first.
        mlp: the MLP as a whole, which may give tokens of another width than it takes.
    """

    name: str
    layers: tuple[Layer, ...]
    mlp: Layer


@torch.no_grad()
def find_blocks(network: Any, image: Tensor) -> tuple[Block, ...]:
    """Find the blocks of a network of timm, in order; empty if it is no transformer.

    A layer counts if the network calls it as a module, so that something can run beside it: BEiT and Swin V2 read the
    weights of their `attn.qkv` and multiply by themselves. It must take tokens: one that is much narrower mixes heads
    (CaiT) or positions (ConViT). Attention or MLP by convolutions makes no block.

    Args:
        network: the uncut network in evaluation mode.
        image: one image Tensor[1, 3, S, S] that it takes, which may be on the device meta.
    """
    called: set[nn.Module] = set()
    candidates = {
        name: module
        for name, module in network.named_modules()
        if {ATTENTION, MLP} <= {child for child, _ in module.named_children()}
    }
    with ExitStack() as hooks:
        for block in candidates.values():
            for _, layer in _linear(block):
                hooks.callback(layer.register_forward_hook(lambda module, *_: called.add(module)).remove)
        network.forward_features(image)
    found = (_block(name, block, called) for name, block in candidates.items())
    return tuple(block for block in found if block)


def _block(name: str, module: nn.Module, called: Collection[nn.Module]) -> Block | None:
    layers = [Layer(own, layer.in_features, layer.out_features) for own, layer in _linear(module) if layer in called]
    of_mlp = [layer for layer in layers if layer.name.startswith(f"{MLP}.")]
    if not of_mlp:
        return None
    mlp = Layer(MLP, of_mlp[0].inputs, of_mlp[-1].outputs)
    of_tokens = tuple(layer for layer in layers if layer.inputs * NARROW >= mlp.inputs)
    return Block(name, of_tokens, mlp) if len(of_tokens) > len(of_mlp) else None


def _linear(block: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """Yield the linear layers of attention and MLP, by their names within the block.

    What lies deeper in them takes no tokens: it computes biases from positions.
    """
    for part in (ATTENTION, MLP):
        for name, module in block.get_submodule(part).named_children():
            if isinstance(module, nn.Linear):
                yield f"{part}.{name}", module
