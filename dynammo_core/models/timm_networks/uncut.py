"""A network that runs as a whole: features and maps as it gives them itself, and adapters inside its blocks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor, nn

from dynammo_core.models.backbones import Backbone
from dynammo_core.models.transformers.adapters import TransformerAdapters
from dynammo_core.models.transformers.blocks import Block


class UncutBackbone(Backbone):
    """A network of timm in one piece: transformers, networks with branches, and those that keep channels last.

    Its prefix is the image itself. Adapters run beside modules of `network`, whatever level is asked for.

    Args:
        network: the uncut network.
        maps: indices of the maps to give, as `forward_intermediates` counts them, and their channels.
        feature_dim: width D of the features.
        obstacle: why it cannot be cut.
        blocks: where adapters for transformers can go.
    """

    network: Any  # a module with the methods that all of timm's networks have

    def __init__(
        self, network: nn.Module, maps: dict[int, int], feature_dim: int, obstacle: str, blocks: Sequence[Block] = ()
    ) -> None:
        super().__init__(nn.Identity(), (), (), feature_dim)
        self.network = network
        self.indices = list(maps)
        self.map_channels = tuple(maps.values())
        self.obstacle = obstacle
        self.blocks = tuple(blocks)

    def from_prefix(self, maps: Tensor, adapters: Iterable[nn.Module] | None = None) -> Tensor:
        """Return features Tensor[B, D] from the output of `prefix`: normalised images Tensor[B, 3, S, S]."""
        with self._with(adapters):
            return self._features(self.network.forward_features(maps))

    def stage_inputs(self, maps: Tensor, adapters: Iterable[nn.Module] | None = None) -> tuple[list[Tensor], Tensor]:
        """Return maps Tensor[B, C_i, H_i, W_i] after groups of blocks or stages, and the features, in one pass."""
        with self._with(adapters):
            last, inner = self.network.forward_intermediates(
                maps, indices=self.indices, stop_early=False, output_fmt="NCHW"
            )
            return inner, self._features(last)

    def stage_outputs(self, images: Tensor, adapters: Iterable[nn.Module] | None = None) -> tuple[list[Tensor], Tensor]:
        """Return the same as `stage_inputs`."""
        return self.stage_inputs(self.prefix(images), adapters)

    def _with(self, adapters: Iterable[nn.Module] | None) -> AbstractContextManager[None]:
        if isinstance(adapters, TransformerAdapters):
            return adapters.beside(self.network)
        list(self._pairs(adapters))  # refuses all others, for which there is no place
        return nullcontext()

    def _features(self, last: Tensor) -> Tensor:
        features: Tensor = self.network.forward_head(last, pre_logits=True)
        return features
