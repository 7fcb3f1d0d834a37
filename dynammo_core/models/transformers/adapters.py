"""Adapters for transformers, which run beside modules of a frozen network: LoRA, or a bottleneck beside each MLP."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dynammo_core.models.names import Kind
from dynammo_core.models.transformers.blocks import MLP, Block
from dynammo_core.support.errors import ConfigError
from dynammo_core.support.seeding import seeded_generator

SCALE = 0.1
"""What a bottleneck's answer is multiplied by, as in AdaptFormer."""


class LowRank(nn.Module):
    """B A x, to be added to the answer W x of a linear layer; B is trained and starts as 0, A is fixed.

    Source: LoRA (Hu et al., arXiv 2106.09685), with A fixed as in FFA-LoRA (Sun et al., arXiv 2403.12313): the mean of
    several sites' or tasks' B is then the mean of their products B A, which the means of A and of B are not; half of
    the numbers travel; and noise is added to a sum, not to a product. Deviation: the rows of A are orthonormal, so that
    two products are as far apart as their B: lengths that clipping bounds and angles that `slerp` keeps are theirs.

    Args:
        place: name of the layer, from which A is drawn: the same at all sites and in all runs, so it never travels.
        inputs: width of the layer's inputs.
        outputs: width of its outputs.
        rank: rows of A.
    """

    def __init__(self, place: str, inputs: int, outputs: int, rank: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(outputs, rank))
        self.projection: Tensor
        self.register_buffer("projection", _orthonormal(place, inputs, rank).to(self.weight.device), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return what is added, Tensor[..., outputs], for Tensor[..., inputs]."""
        return F.linear(F.linear(tokens, self.projection), self.weight)

    def product(self) -> Tensor:
        """Return B A, Tensor[outputs, inputs], which folding adds to the layer's weights."""
        return self.weight @ self.projection


class Bottleneck(nn.Module):
    """0.1 U relu(D x), to be added to the answer of a block's MLP; U starts as 0.

    Source: AdaptFormer (Chen et al., arXiv 2205.13535, equation 4).

    Args:
        inputs: width of the tokens that the MLP takes.
        outputs: width of those that it gives.
        rank: width in between.
    """

    def __init__(self, inputs: int, outputs: int, rank: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(inputs, rank), nn.Linear(rank, outputs)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        for tensor in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(tensor)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return what is added, Tensor[..., outputs], for Tensor[..., inputs]."""
        added: Tensor = SCALE * self.up(self.down(tokens).relu())
        return added


class BlockAdapter(nn.ModuleDict):
    """What runs beside the modules of one block, by their names with underscores for dots.

    Args:
        block: the block.
        kind: LoRA, or a bottleneck.
        rank: of each.
    """

    def __init__(self, block: Block, kind: Kind, rank: int) -> None:
        layers = (block.mlp,) if kind == "bottleneck" else block.layers
        narrowest = min(layers, key=lambda layer: layer.inputs)
        if rank > narrowest.inputs:
            place = f"{block.name}.{narrowest.name}, {narrowest.inputs}"
            raise ConfigError(f"method.adapter_rank: {rank} is more than the width of {place}")
        super().__init__()
        self.places = [f"{block.name}.{layer.name}" for layer in layers]
        if kind == "bottleneck":
            self[MLP] = Bottleneck(block.mlp.inputs, block.mlp.outputs, rank)
            return
        for layer, place in zip(layers, self.places, strict=True):
            self[layer.name.replace(".", "_")] = LowRank(place, layer.inputs, layer.outputs, rank)


class TransformerAdapters(nn.ModuleList):
    """The adapters that one task learns, one for each block of a transformer; at first they change nothing.

    The network is not touched, so that several sets, models and sites share it: only while a set runs, hooks add its
    answers. Weights W + B A put in the network's place would give the same and take a sixth more time to train, since
    the gradient of each W is then computed, and under DP-SGD one for each sample.

    Args:
        blocks: where they go.
        kind: LoRA, or a bottleneck.
        rank: of each.

    Raises:
        ConfigError: the rank exceeds the width of a layer.
    """

    def __init__(self, blocks: Sequence[Block], kind: Kind, rank: int) -> None:
        super().__init__(BlockAdapter(block, kind, rank) for block in blocks)

    @contextmanager
    def beside(self, network: nn.Module) -> Iterator[None]:
        """Let the adapters act in the network as long as the context lasts."""
        with ExitStack() as hooks:
            for place, branch in self.branches():
                hooks.callback(network.get_submodule(place).register_forward_hook(_adding(branch)).remove)
            yield

    def branches(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield what runs beside a module of the network, with that module's name."""
        for adapter in self:
            assert isinstance(adapter, BlockAdapter)
            yield from zip(adapter.places, adapter.values(), strict=True)


def _adding(branch: nn.Module) -> Any:
    def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        added: Tensor = output + branch(inputs[0])
        return added

    return add


@lru_cache(maxsize=1024)
def _orthonormal(place: str, inputs: int, rank: int) -> Tensor:
    """Draw orthonormal rows Tensor[rank, inputs].

    They must be the same at all sites: in float64, so that rounding hides how a processor adds, and with a positive
    diagonal of R, since libraries of linear algebra are free in the signs.
    """
    generator = seeded_generator("lora", place, inputs, rank)
    drawn = torch.randn(inputs, rank, dtype=torch.float64, device="cpu", generator=generator)
    basis, triangle = torch.linalg.qr(drawn)
    rows: Tensor = (basis * triangle.diagonal().sign()).T.float().contiguous()
    return rows
