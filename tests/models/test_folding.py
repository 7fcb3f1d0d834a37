"""Folded batch norm: the same answers, no batch norm left, and a network that it does not fit is refused."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from dynammo_core.configuration.settings import BackboneSettings
from dynammo_core.models.adapters import AdapterSet
from dynammo_core.models.backbones import BACKBONES, build_backbone
from dynammo_core.models.folding import fold_batch_norm
from dynammo_core.models.incremental_model import AdaptedBackbone
from dynammo_core.support.seeding import seeded_generator, seeded_initialisation

IMAGES = torch.rand(2, 3, 32, 32, generator=seeded_generator("folding"))


def norms(network: nn.Module) -> list[nn.Module]:
    return [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]


def unsettled(network: nn.Module) -> nn.Module:
    """As after training: no batch norm is the identity."""
    with seeded_initialisation(1, "folding"):
        for norm in norms(network):
            assert isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None and norm.running_var is not None
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
            norm.weight.data.uniform_(0.5, 1.5)
            norm.bias.data.normal_()
    return network.eval()


@pytest.mark.parametrize("name", BACKBONES)
@torch.no_grad()
def test_a_folded_network_answers_as_before(name: str) -> None:
    extractor = AdaptedBackbone(build_backbone(BackboneSettings(name=name, weights="random"), 1).freeze())
    extractor.adapters = AdapterSet(extractor.backbone.channels, alpha=0.5)
    folded = copy.deepcopy(unsettled(extractor))
    assert fold_batch_norm(folded, IMAGES[:1]) == len(norms(extractor))
    assert norms(folded) == []
    expected, found = extractor(IMAGES), folded(IMAGES)
    assert float((expected - found).abs().max()) < 1e-5 * float(expected.abs().max())


class Twice(nn.Module):
    """Its convolution is read by two batch norms."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.one, self.other = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.convolution(images)
        return torch.cat([self.one(maps), self.other(maps)], dim=1)


class Beside(nn.Module):
    """Its convolution is read by a batch norm, and by a function that no module sees."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, images: Tensor) -> Tensor:
        maps: Tensor = self.convolution(images)
        return maps + self.norm(maps)


@torch.no_grad()
def test_a_convolution_with_two_readers_is_left_alone() -> None:
    network = unsettled(Twice())
    before = network(IMAGES)
    assert fold_batch_norm(network, IMAGES) == 0
    assert torch.equal(network(IMAGES), before)


def test_a_reader_that_is_no_module_is_found_out() -> None:
    with pytest.raises(ValueError, match="cannot be folded"):
        fold_batch_norm(unsettled(Beside()), IMAGES)
