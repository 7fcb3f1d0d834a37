"""How many images at a time: from the shapes of maps, and the same features whatever their number."""

from __future__ import annotations

from pathlib import Path

import torch
from small_runs import small_config, small_site
from torch import nn

from dynammo_core.configuration.settings import BackboneSettings
from dynammo_core.experiment import Experiment
from dynammo_core.models.backbones import build_backbone
from dynammo_core.scoring.evaluation import BATCH, embed_samples
from dynammo_core.scoring.maps import batch_within, largest_maps


def test_the_largest_maps_are_those_of_one_layer() -> None:
    network = build_backbone(BackboneSettings(name="small_cnn", weights="random"), 0).train()
    # The first convolution reads 3 x 32 x 32 numbers and writes 8 x 16 x 16, more than any layer behind it moves.
    assert largest_maps(network, 32) == 4 * (3 * 32**2 + 8 * 16**2)
    assert all(parameter.device.type == "cpu" for parameter in network.parameters())
    assert all(module.training for module in network.modules())
    transformer = build_backbone(BackboneSettings(name="timm/test_vit", weights="random"), 0).eval()
    assert largest_maps(transformer, 160) > 4 * 3 * 160**2

    class Reads(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images * float(images.sum())

    assert largest_maps(Reads(), 8) == 0


def test_fewer_images_at_a_time_only_where_their_maps_would_be_too_large() -> None:
    assert [batch_within(size, most=1000) for size in (0, 7, 8, 10, 300, 999, 5000)] == [128, 128, 64, 64, 2, 1, 1]
    for name, size in (("resnet18", 224), ("efficientnet_lite2", 224)):  # as published, so their bits stay
        with torch.device("meta"):
            network = build_backbone(BackboneSettings(name=name, weights="random"), 0).eval()
        assert batch_within(largest_maps(network, size)) == BATCH


def test_features_do_not_depend_on_the_number_of_images_at_a_time(tmp_path: Path) -> None:
    experiment = Experiment(small_config())
    assert experiment.frozen_batch == BATCH
    assert Experiment(small_config("dynammo", {"compute.batch_size_frozen": 3})).frozen_batch == 3
    model, samples = experiment.build_model(0), small_site(experiment, 0, tmp_path).train_images((0, 1))
    one, other = (
        embed_samples(model, samples, experiment.config.normalisation, experiment.device, batch=batch)
        for batch in (BATCH, 3)
    )
    torch.testing.assert_close(one, other)
