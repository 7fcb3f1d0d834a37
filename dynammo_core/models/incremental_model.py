"""The network that learns task after task: one feature extractor and the heads grown so far."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Literal

from torch import Tensor, nn

from dynammo_core.models.adapters import AdapterSet
from dynammo_core.models.backbones import Backbone
from dynammo_core.models.heads import LinearHead

Level = Literal["images", "prefix", "features"]
"""How far an input has come: normalised images, the maps before the first adapter, or the features for the heads."""


class AdaptedBackbone(nn.Module):
    """A backbone with at most one adapter before each stage: one pass, whatever the number of tasks."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        self.adapters: AdapterSet | None = None

    def forward(self, images: Tensor) -> Tensor:
        """Features Tensor[B, D] of normalised images Tensor[B, 3, S, S]."""
        features: Tensor = self.backbone(images, self.adapters)
        return features

    def embed(self, inputs: Tensor, *, start: Level, end: Level = "features") -> Tensor:
        """Carry `inputs` from one level of the network to a later one."""
        if start == end:
            return inputs
        if end == "prefix":
            maps: Tensor = self.backbone.prefix(inputs)
            return maps
        if start == "prefix":
            return self.backbone.from_prefix(inputs, self.adapters)
        return self.forward(inputs)


class IncrementalModel(nn.Module):
    """A feature extractor and the heads that the method has grown, by name."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.extractor = AdaptedBackbone(backbone)
        self.heads = nn.ModuleDict()

    @property
    def feature_dim(self) -> int:
        """Width D of the features."""
        return self.extractor.backbone.feature_dim

    def head(self, name: str) -> LinearHead:
        """The head of that name.

        Raises:
            KeyError: the method has not grown it yet.
        """
        head = self.heads[name]
        assert isinstance(head, LinearHead)
        return head


def travelling_names(model: nn.Module) -> list[str]:
    """Names in the state dict of all that may change in a run: everything but frozen backbones."""
    frozen = tuple(
        f"{name}." for name, module in model.named_modules() if isinstance(module, Backbone) and module.frozen
    )
    return [name for name in model.state_dict() if not name.startswith(frozen) and "num_batches_tracked" not in name]


def matching(names: Iterable[str], patterns: Iterable[str]) -> list[str]:
    """The names that fit one of the shell-style patterns, in their order."""
    wanted = tuple(patterns)
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in wanted)]
