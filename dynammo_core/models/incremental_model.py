"""The network that learns task after task: a feature extractor and the heads that have grown so far."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from dynammo_core.models.backbones import Backbone
from dynammo_core.models.heads import Head
from dynammo_core.models.names import Level, Pooling
from dynammo_core.support.errors import ConfigError


class Extractor(nn.Module, ABC):
    """Turns normalised images Tensor[B, 3, S, S] into features Tensor[B, D], in levels.

    Attributes:
        feature_dim: width D of the features.
    """

    feature_dim: int

    def embed(self, inputs: Tensor, *, start: Level, end: Level = "features") -> Tensor:
        """Carry `inputs` from one level of the network to a later one."""
        if start == end:
            return inputs
        maps = self._prefix(inputs) if start == "images" else inputs
        return maps if end == "prefix" else self._from_prefix(maps)

    def forward(self, images: Tensor) -> Tensor:
        """Return features Tensor[B, D] of normalised images Tensor[B, 3, S, S]."""
        return self.embed(images, start="images")

    @abstractmethod
    def _prefix(self, images: Tensor) -> Tensor:
        """Return what every pass shares: the maps before the first adapter."""

    @abstractmethod
    def _from_prefix(self, maps: Tensor) -> Tensor:
        """Return features Tensor[B, D] from the output of `_prefix`."""


class AdaptedBackbone(Extractor):
    """A backbone with at most one set of adapters: one pass, whatever the number of tasks."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        self.adapters: nn.ModuleList | None = None
        self.feature_dim = backbone.feature_dim

    def embed_last(self, inputs: Tensor, *, start: Level) -> Tensor:
        """Return the backbone's own features Tensor[B, D], the last of the features that `embed` would return."""
        if start == "features":
            return inputs[:, -self.backbone.feature_dim :]
        return self.backbone.from_prefix(self._prefix(inputs) if start == "images" else inputs, self.adapters)

    def _prefix(self, images: Tensor) -> Tensor:
        maps: Tensor = self.backbone.prefix(images)
        return maps

    def _from_prefix(self, maps: Tensor) -> Tensor:
        return self.backbone.from_prefix(maps, self.adapters)


def _mean(maps: Tensor) -> Tensor:
    return maps.mean(dim=(2, 3))


def _deviation(maps: Tensor) -> Tensor:
    return maps.flatten(2).std(dim=2, correction=0)


def _quarter(row: int, column: int, maps: Tensor) -> Tensor:
    """Compute the mean of one quarter of each map; on a side with an odd number of pixels, halves share the middle."""
    rows, columns = (
        slice(half * side // 2, ((half + 1) * side + 1) // 2)
        for half, side in zip((row, column), maps.shape[2:], strict=True)
    )
    return _mean(maps[:, :, rows, columns])


POOLS: Mapping[Pooling, tuple[Callable[[Tensor], Tensor], ...]] = {
    "mean": (_mean,),
    "spread": (_mean, _deviation),
    "grid": (*(partial(_quarter, row, column) for row in (0, 1) for column in (0, 1)), _deviation),
}
"""Functions that each turn maps Tensor[B, C, H, W] into one feature per channel, Tensor[B, C]."""


def _pooled_before(features: Tensor, maps: Sequence[Tensor], pooling: Pooling) -> Tensor:
    """Return the pooled maps Tensor[B, C_i, H_i, W_i] and behind them the features Tensor[B, D], in one row."""
    return torch.cat([*(pool(own) for pool in POOLS[pooling] for own in maps), features], dim=1)


class MultiScaleBackbone(AdaptedBackbone):
    """Puts the pooled inputs of every stage before the features: fine and coarse features from the same pass.

    Args:
        backbone: the network.
        pooling: how the stages' inputs are pooled. A channel's deviation separates textures with the same mean, the
            quarters of a map separate shapes.

    Raises:
        ConfigError: the network gives no maps.
    """

    def __init__(self, backbone: Backbone, pooling: Pooling = "mean") -> None:
        if not backbone.map_channels:
            raise ConfigError(
                "method.multi_scale: true needs the maps of the backbone's stages, and this one gives none",
                remedy="Set method.multi_scale: false to use its last features alone",
            )
        super().__init__(backbone)
        self.pooling = pooling
        self.feature_dim = len(POOLS[pooling]) * sum(backbone.map_channels) + backbone.feature_dim

    def _from_prefix(self, maps: Tensor) -> Tensor:
        inputs, features = self.backbone.stage_inputs(maps, self.adapters)
        return _pooled_before(features, inputs, self.pooling)


class BlockwiseBackbone(AdaptedBackbone):
    """Puts the pooled outputs of every block before the features: all scales that the same pass goes through.

    A block is a step of the network, before the first stage too, that is made of modules with weights.

    Args:
        backbone: the network.
        pooling: how the blocks' outputs are pooled, as by `MultiScaleBackbone`.

    Raises:
        ConfigError: the network is no chain of blocks.
    """

    def __init__(self, backbone: Backbone, pooling: Pooling = "mean") -> None:
        if not backbone.stages:
            raise ConfigError(
                "method.multi_scale: blocks needs a backbone that is a chain of blocks, and this one is not",
                remedy="Set method.multi_scale: true to use the maps of its stages, or false if it gives none",
            )
        super().__init__(backbone)
        self.pooling = pooling
        with torch.no_grad():  # shapes alone: nothing is computed, and no batch-norm statistics move
            shapes, _ = _block_outputs(copy.deepcopy(backbone).to("meta"), torch.empty(2, 3, 224, 224, device="meta"))
        self.feature_dim = len(POOLS[pooling]) * sum(maps.shape[1] for maps in shapes) + backbone.feature_dim

    def embed_last(self, inputs: Tensor, *, start: Level) -> Tensor:
        """Return the backbone's own features Tensor[B, D]; the level of its prefix is the images themselves."""
        if start == "features":
            return super().embed_last(inputs, start=start)
        features: Tensor = self.backbone(inputs, self.adapters)
        return features

    def _prefix(self, images: Tensor) -> Tensor:
        return images  # the blocks of the backbone's prefix are pooled, too

    def _from_prefix(self, maps: Tensor) -> Tensor:
        outputs, features = _block_outputs(self.backbone, maps, self.adapters)
        return _pooled_before(features, outputs, self.pooling)


def _block_outputs(
    backbone: Backbone, images: Tensor, adapters: Iterable[nn.Module] | None = None
) -> tuple[list[Tensor], Tensor]:
    """Return the maps Tensor[B, C_i, H_i, W_i] after every block, and the features Tensor[B, D]."""
    outputs, maps = list[Tensor](), images
    before = [nn.Identity()] * len(backbone.stages) if adapters is None else adapters
    for adapter, section in zip((nn.Identity(), *before), (backbone.prefix, *backbone.stages), strict=True):
        maps = adapter(maps)
        for step in section.children():
            maps = step(maps)
            if _is_block(step):
                outputs.append(maps)
    return outputs, backbone.head(maps)


def _is_block(step: nn.Module) -> bool:
    """Say whether a step of a network is made of modules with weights, and has none of its own."""
    own, all_ = ({*step.parameters(recurse=recurse)} for recurse in (False, True))
    return not own and bool(all_)


class ParallelBackbones(Extractor):
    """Several extractors side by side, with their features concatenated: one pass for each part.

    Args:
        parts: either all of them on one shared backbone, whose prefix then runs once, or each with a network of its
            own, and then the prefix is the image itself.
    """

    def __init__(self, parts: Sequence[AdaptedBackbone]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.feature_dim = sum(part.feature_dim for part in parts)

    @property
    def all_parts(self) -> list[AdaptedBackbone]:
        """Return the parts, oldest first."""
        return [part for part in self.parts if isinstance(part, AdaptedBackbone)]

    @property
    def newest(self) -> AdaptedBackbone:
        """Return the part that was added last."""
        return self.all_parts[-1]

    @property
    def _shared(self) -> bool:
        return all(part.backbone is self.newest.backbone for part in self.all_parts)

    def _prefix(self, images: Tensor) -> Tensor:
        return self.newest.embed(images, start="images", end="prefix") if self._shared else images

    def _from_prefix(self, maps: Tensor) -> Tensor:
        start: Level = "prefix" if self._shared else "images"
        return torch.cat([part.embed(maps, start=start) for part in self.all_parts], dim=1)


class IncrementalModel(nn.Module):
    """A feature extractor and the heads that the method has grown, by name.

    Attributes:
        network: name of the backbone in this run, which tells apart what different ones compute.
        features_before: width of the features of another backbone, up to the task that this one is about to learn
            first; None in all other tasks.
    """

    def __init__(self, backbone: Backbone, network: str = "") -> None:
        super().__init__()
        self.network = network
        self.features_before: int | None = None
        self.extractor: Extractor = AdaptedBackbone(backbone)
        self.heads = nn.ModuleDict()

    @property
    def feature_dim(self) -> int:
        """Return the width D of the features."""
        return self.extractor.feature_dim

    def head(self, name: str) -> Head:
        """Return the head of that name.

        Raises:
            KeyError: the method has not grown it yet.
        """
        head = self.heads[name]
        assert isinstance(head, Head)
        return head
