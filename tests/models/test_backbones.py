from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from dynammo_core.configuration.settings import BackboneSettings
from dynammo_core.models import BACKBONES
from dynammo_core.models.adapters import AdapterSet
from dynammo_core.models.backbones import Backbone, build_backbone
from dynammo_core.models.description import weights_sha256
from dynammo_core.models.incremental_model import BlockwiseBackbone
from dynammo_core.support.seeding import seeded_initialisation

BUILT = [name for name in BACKBONES if name != "efficientnet_lite1"]  # of the same depth as Lite2


def images(count: int = 2, side: int = 64) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(3))


def random_backbone(name: str = "small_cnn", seed: int = 0) -> Backbone:
    return build_backbone(BackboneSettings(name=name, weights="random"), seed)


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def changed(module: nn.Module, before: dict[str, Tensor]) -> list[str]:
    return [name for name, tensor in module.state_dict().items() if not torch.equal(tensor, before[name])]


def adapter_step(backbone: Backbone) -> nn.ModuleDict:
    """One training step of everything that takes a gradient, with the parent in training mode."""
    model = nn.ModuleDict({"backbone": backbone, "adapters": AdapterSet(backbone.channels, alpha=0.5)})
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    backbone(images(), model["adapters"]).square().sum().backward()
    optimizer.step()
    return model


@pytest.mark.parametrize("name", BUILT)
def test_cut_network_computes_what_the_uncut_one_does(name: str) -> None:
    spec = BACKBONES[name]
    with seeded_initialisation(0):
        network = spec.build().eval()
    with torch.no_grad():
        expected = network(images())
        backbone = spec.cut(network)
        features = backbone(images())
        logits = network.get_submodule(spec.dropped[-1])(features)
    assert features.shape == (2, spec.feature_dim) == (2, backbone.feature_dim)
    # Relative to the spread over the images, so that a network with tiny outputs is no free pass.
    assert (logits - expected).abs().max() <= 1e-6 * expected.abs().max()
    assert not torch.equal(expected[0], expected[1])


@pytest.mark.parametrize("name", BUILT)
def test_adapters_of_the_stated_widths_fit_and_act_at_every_insertion_point(name: str) -> None:
    spec, backbone = BACKBONES[name], random_backbone(name).eval()
    assert len(spec.insertion_points) == len(spec.channels) == len(backbone.stages)
    adapters = AdapterSet(spec.channels, alpha=1.0).train()
    with torch.no_grad():
        plain, _ = backbone.stage_outputs(images())
        for index in range(len(adapters)):
            alone = [adapter if i == index else nn.Identity() for i, adapter in enumerate(adapters)]
            moved = [
                not torch.equal(a, b) for a, b in zip(backbone.stage_outputs(images(), alone)[0], plain, strict=True)
            ]
            assert moved == [stage >= index for stage in range(len(adapters))]


@pytest.mark.parametrize("name", BUILT)
def test_going_on_from_the_prefix_is_the_whole_pass_and_leaves_the_prefix_alone(name: str) -> None:
    backbone = random_backbone(name).freeze()
    adapters = AdapterSet(backbone.channels, alpha=0.5).eval()
    with torch.no_grad():
        cached = backbone.prefix(images())
        kept = cached.clone()
        for inserted in (None, adapters):
            features = backbone.from_prefix(cached, inserted)
            assert torch.equal(cached, kept)
            assert torch.equal(features, backbone(images(), inserted))
            maps, last = backbone.stage_outputs(images(), inserted)
            assert torch.equal(features, last)
            assert torch.equal(features, maps[-1].mean(dim=(2, 3)))


def test_insertion_points_are_where_the_method_puts_them() -> None:
    # Sides of the maps that enter each stage, at 224 pixels: ResNet-18's layer1..4 see strides 4, 4, 8, 16;
    # EfficientNet's fourth, fifth and sixth groups of blocks 8, 16, 16, its head convolution 32.
    expected = {
        "resnet18": [(64, 56), (64, 56), (128, 28), (256, 14)],
        "mobilenet_v2": [(24, 56), (32, 28), (96, 14), (160, 7)],
        "efficientnet_b0": [(40, 28), (80, 14), (112, 14), (320, 7)],
        "efficientnet_lite0": [(40, 28), (80, 14), (112, 14), (320, 7)],
        "efficientnet_lite1": [(40, 28), (80, 14), (112, 14), (320, 7)],
        "efficientnet_lite2": [(48, 28), (88, 14), (120, 14), (352, 7)],
    }
    for name, shapes in expected.items():
        backbone = random_backbone(name).eval().to("meta")
        image = torch.empty(1, 3, 224, 224, device="meta")
        *entering, last = [backbone.prefix(image), *backbone.stage_outputs(image)[0]]
        assert [(maps.shape[1], maps.shape[2]) for maps in entering] == shapes
        assert last.shape == (1, backbone.feature_dim, 7, 7)  # maps, not pooled yet, of total stride 32


def test_as_many_adapters_as_stages_are_asked_for() -> None:
    backbone = random_backbone()
    with pytest.raises(ValueError, match="argument 2 is longer"):
        backbone(images(), AdapterSet(backbone.channels[:-1], alpha=0.5))


@pytest.mark.parametrize("name", BUILT)
def test_frozen_stays_bitwise_the_same_while_adapters_train(name: str) -> None:
    backbone = random_backbone(name).freeze()
    before = snapshot(backbone)
    model = adapter_step(backbone)
    assert backbone.frozen
    assert changed(backbone, before) == []
    assert not any(module.training for module in backbone.modules())
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    assert model.training
    assert model["adapters"].training
    assert all(parameter.grad is not None for parameter in model["adapters"].parameters())


def test_unfrozen_trains_weights_and_statistics() -> None:
    backbone = random_backbone()
    before = snapshot(backbone)
    adapter_step(backbone)
    assert not backbone.frozen
    assert set(changed(backbone, before)) == set(before)


def test_a_deep_copy_is_equal_stays_frozen_and_is_independent() -> None:
    backbone = random_backbone().freeze()
    twin = copy.deepcopy(backbone)
    assert torch.equal(twin(images()), backbone(images()))
    assert twin.train().frozen
    assert not twin.stages.training
    with torch.no_grad():
        next(twin.parameters()).zero_()
    assert next(backbone.parameters()).abs().sum() > 0


@pytest.mark.parametrize("name", BUILT)
def test_a_seed_fixes_random_weights_and_leaves_the_global_generator_alone(name: str) -> None:
    torch.manual_seed(11)
    state = torch.get_rng_state()
    first = random_backbone(name, seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(7)
    assert changed(random_backbone(name, seed=5), snapshot(first)) == []
    assert changed(random_backbone(name, seed=6), snapshot(first)) != []


def test_resnet18_costs_what_the_method_states() -> None:
    # torchvision documents 1.81 G multiply-adds at 224 pixels; the classifier, dropped here, makes 512 * 1000 of them.
    backbone = random_backbone("resnet18").eval().to("meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        backbone(torch.empty(1, 3, 224, 224, device="meta"))
    assert round(counter.get_total_flops() / 2e9, 2) == 1.81


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(ValidationError, match=r"'resnet81' \(did you mean 'resnet18'\?\); accepted: .*mobilenet_v2"):
        BackboneSettings(name="resnet81", weights="random")


def test_weights_come_from_the_file_and_its_hash_is_told(tmp_path: Path) -> None:
    with seeded_initialisation(1):
        network = BACKBONES["small_cnn"].build()
    path = tmp_path / "mine.pt"
    torch.save(network.state_dict(), path)
    settings = BackboneSettings(name="small_cnn", weights=str(path))
    built, expected = build_backbone(settings, 0), BACKBONES["small_cnn"].cut(network)
    assert changed(built, snapshot(expected)) == []

    random = settings.model_copy(update={"weights": "random"})
    assert weights_sha256(settings) != weights_sha256(random) == "random"
    assert weights_sha256(settings.model_copy(update={"sha256": weights_sha256(settings)})) == weights_sha256(settings)


def test_what_exports_a_network_that_resizes_changes_it_for_nobody_else() -> None:
    """A tracer computes with tensors that hold no values."""
    settings, images = BackboneSettings(name="small_cnn", weights="random", image_size=24), torch.rand(2, 3, 40, 40)
    exported = torch.export.export(build_backbone(settings, 0, 40).eval(), (images,)).module()
    features = build_backbone(settings, 0, 40).eval()(images)
    assert type(features) is torch.Tensor
    torch.testing.assert_close(features, exported(images))


@pytest.mark.parametrize("name", ["small_cnn", "timm/test_vit"])
def test_a_network_resizes_images_to_a_size_of_its_own_as_interpolation_does(name: str) -> None:
    own, other = (
        build_backbone(BackboneSettings(name=name, weights="random", image_size=side), 0, 64).eval()
        for side in (48, None)
    )
    if name == "timm/test_vit":  # built for one size
        other = build_backbone(BackboneSettings(name=name, weights="random"), 0, 48).eval()
    assert own.state_dict().keys() == other.state_dict().keys(), "its tensors keep their names"
    for side in (64, 40, 48):
        seen = F.interpolate(images(side=side), (48, 48), mode="bilinear", antialias=side > 48)
        for ours, theirs in zip(
            (own(images(side=side)), *own.stage_outputs(images(side=side))[0]),
            (other(seen), *other.stage_outputs(seen)[0]),
            strict=True,
        ):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    blocks = [BlockwiseBackbone(each) for each in (own, other)] if name == "small_cnn" else []
    assert len({extractor.feature_dim for extractor in blocks}) == len(blocks) / 2
