"""The adapters and heads of K sites as one network, whose frozen backbone sees the images of all sites in one pass.

Images take turns: image i of site k is number i * K + k. The channels of the sites' maps then lie side by side, and
convolutions and norms treat each site as a group of its own. A mean over all images, times K, is the sum of the sites'
losses; each tensor learns from its own site's alone, so a step of SGD or Adam is a step of each site by itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dynammo_core.models.adapters import Adapter, AdapterSet, BatchNorm
from dynammo_core.models.heads import Head, LinearHead
from dynammo_core.models.incremental_model import AdaptedBackbone, IncrementalModel
from dynammo_core.models.names import travelling_names


class StackedAdapter(nn.Module):
    """The adapters of K sites before one stage, its tensors those of the sites one after the other.

    Args:
        like: one of the adapters; all have its shape.
        sites: K.
    """

    def __init__(self, like: Adapter, sites: int) -> None:
        super().__init__()
        self.sites = sites
        self.alpha = nn.Parameter(torch.empty(sites))
        self.residual = nn.Sequential(*(_widened(module, sites) for module in like.residual))

    def forward(self, maps: Tensor) -> Tensor:
        """Adapted maps Tensor[B * K, C, H, W], where the images of the sites take turns."""
        _, channels, height, width = maps.shape
        side_by_side = maps.reshape(-1, self.sites * channels, height, width)
        residual = self.residual(side_by_side).reshape(-1, self.sites, channels, height, width)
        # The sum lies in memory as its first part does, as the backbone behind expects it: channels last or not.
        adapted: Tensor = maps + (self.alpha.view(-1, 1, 1, 1) * residual).flatten(0, 1)
        return adapted


class StackedHead(Head):
    """The linear heads of K sites, with the same R rows.

    Args:
        like: one of the heads.
        sites: K.
    """

    row_tensors = ()

    def __init__(self, like: LinearHead, sites: int) -> None:
        super().__init__()
        self.rows = like.rows
        self.sites = sites
        self.weight = nn.Parameter(torch.empty(sites * like.out_features, like.in_features))
        self.bias = nn.Parameter(torch.empty(sites * like.out_features))

    def forward(self, features: Tensor) -> Tensor:
        """Logits Tensor[B * K, R] of features Tensor[B * K, D], where the images of the sites take turns."""
        by_site = features.reshape(-1, self.sites, features.shape[1]).transpose(0, 1)
        weight, bias = self.weight.view(self.sites, -1, features.shape[1]), self.bias.view(self.sites, 1, -1)
        return torch.baddbmm(bias, by_site, weight.mT).transpose(0, 1).flatten(0, 1)


def stack(models: Sequence[IncrementalModel], head: str) -> IncrementalModel:
    """One network that trains the adapters and the named head of all models, under the names that they have there.

    Raises:
        ValueError: the models do not share one frozen backbone, or lack adapters or a linear head.
    """
    first, sites = models[0], len(models)
    extractor, own_head = first.extractor, first.head(head)
    if not isinstance(extractor, AdaptedBackbone) or extractor.adapters is None or not isinstance(own_head, LinearHead):
        raise ValueError("only networks with adapters and a linear head can be stacked")
    backbone = extractor.backbone
    if not backbone.frozen or any(getattr(model.extractor, "backbone", None) is not backbone for model in models):
        raise ValueError("only networks that share one frozen backbone can be stacked")
    stacked = IncrementalModel(backbone)
    assert isinstance(stacked.extractor, AdaptedBackbone)
    with torch.device("meta"):  # no memory and no initial weights, which the next lines would replace
        adapters = [StackedAdapter(adapter, sites) for adapter in extractor.adapters if isinstance(adapter, Adapter)]
        stacked.extractor.adapters = AdapterSet((), alpha=0)
        stacked.extractor.adapters.extend(adapters)
        stacked.heads[head] = StackedHead(own_head, sites)
    states = [model.state_dict() for model in models]
    together = {name: torch.cat([_rows(state[name]) for state in states]) for name in travelling_names(stacked)}
    stacked.load_state_dict(together, strict=False, assign=True)
    return stacked


def unstack(stacked: IncrementalModel, models: Sequence[IncrementalModel]) -> None:
    """Give each model what its site has learnt, in the order in which they were stacked."""
    state, states = stacked.state_dict(), [model.state_dict() for model in models]
    for name in travelling_names(stacked):
        for own, learnt in zip(states, state[name].chunk(len(models)), strict=True):
            own[name].copy_(learnt.view_as(own[name]))


def in_turns(batches: Sequence[Tensor]) -> Tensor:
    """Batches Tensor[B, ...] of K sites as one, Tensor[B * K, ...], in the order that a stacked network reads.

    Raises:
        RuntimeError: they are not of one size; batch norm has no statistics of a batch that others would fill up.
    """
    return torch.stack(tuple(batches), dim=1).flatten(0, 1)


def _rows(tensor: Tensor) -> Tensor:
    """The tensor as sites' tensors follow each other: a number as a vector, and no kernel with its channels last."""
    return tensor.reshape(-1, *tensor.shape[1:]).contiguous()


def _widened(module: nn.Module, sites: int) -> nn.Module:
    """A module like this one for the maps of several sites side by side, Tensor[B, K * C, H, W]."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        channels = (sites * module.in_channels, sites * module.out_channels)
        padding = (int(module.padding[0]), int(module.padding[1]))
        return type(module)(*channels, kernel_size=3, padding=padding, groups=sites, bias=False)
    if isinstance(module, nn.GroupNorm):
        return nn.GroupNorm(sites * module.num_groups, sites * module.num_channels)
    if isinstance(module, BatchNorm):
        return BatchNorm(sites * module.num_features)
    return nn.ReLU(inplace=True)
