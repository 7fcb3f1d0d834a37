"""Networks whose features and logits can be worked out by hand."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dynammo_core.methods.decisions import CLASSES
from dynammo_core.models.backbones import Backbone
from dynammo_core.models.heads import CosineHead, Head
from dynammo_core.models.incremental_model import AdaptedBackbone, IncrementalModel


class Swap(nn.Module):
    """The first channel becomes the second, and the second the first."""

    def forward(self, maps: Tensor) -> Tensor:
        return maps.flip(1)


def plain_backbone(*stages: nn.Module) -> Backbone:
    """Images Tensor[B, 2, H, W] run through the stages; the features are the means of the two channels."""
    return Backbone(nn.Identity(), stages, (2,) * len(stages), 2)


def plain_extractor(*stages: nn.Module) -> AdaptedBackbone:
    return AdaptedBackbone(plain_backbone(*stages))


def plain_model(head: Head, *stages: nn.Module) -> IncrementalModel:
    model = IncrementalModel(plain_backbone(*stages))
    model.heads[CLASSES] = head
    return model


def images_of(*features: tuple[float, float]) -> Tensor:
    """One image of a single pixel for each pair of features."""
    return torch.tensor(features, dtype=torch.float32)[:, :, None, None]


def cosine_head(vectors: list[list[float]], *, scale: float, proxies: int = 1) -> CosineHead:
    """A cosine head of the classes 0, 1, ..."""
    head = CosineHead(2, tuple(range(len(vectors) // proxies)), proxies=proxies, scale=scale)
    with torch.no_grad():
        head.weight.copy_(torch.tensor(vectors))
    return head


@torch.no_grad()
def says(head: Head, probabilities: list[float]) -> None:
    """Whatever the features, a linear head answers these probabilities."""
    head.weight.zero_()
    head.get_parameter("bias").copy_(torch.tensor(probabilities).log())
