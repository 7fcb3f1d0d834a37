"""What must hold of LoRA and bottlenecks in a small random transformer."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from dynammo_core.methods.adapters import new_adapters
from dynammo_core.methods.settings.adapters import AdapterSettings
from dynammo_core.models import BACKBONES
from dynammo_core.models.folding import fold_low_rank
from dynammo_core.models.incremental_model import AdaptedBackbone, MultiScaleBackbone, ParallelBackbones
from dynammo_core.models.names import Kind
from dynammo_core.models.timm_networks.uncut import UncutBackbone
from dynammo_core.models.transformers.adapters import TransformerAdapters
from dynammo_core.models.transformers.blocks import Block, Layer
from dynammo_core.privacy.gradients import PrivateGradients
from dynammo_core.privacy.noise import SeededNoise
from dynammo_core.support.errors import ConfigError
from dynammo_core.support.seeding import seeded_initialisation

VIT, CNN = "timm/test_vit", "small_cnn"
RANK = 4
KINDS: tuple[Kind, ...] = ("lora", "bottleneck")


def images(count: int = 2) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def backbone() -> UncutBackbone:
    """Frozen, with weights that differ enough from 0 for every place to count."""
    spec = BACKBONES[VIT]
    with seeded_initialisation(1):
        built = spec.cut(spec.assemble(None, 32)).freeze()
    assert isinstance(built, UncutBackbone)
    return built


def learnt(kind: Kind, backbone: UncutBackbone, seed: int = 0) -> TransformerAdapters:
    """A set in which every tensor has moved."""
    adapters = TransformerAdapters(backbone.blocks, kind, RANK)
    with torch.no_grad(), seeded_initialisation("learnt", seed):
        for parameter in adapters.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return adapters


def test_blocks_are_found_with_the_widths_of_their_layers(backbone: UncutBackbone) -> None:
    assert [block.name for block in backbone.blocks] == [f"blocks.{index}" for index in range(6)]
    for block in backbone.blocks:
        assert block.mlp == Layer("mlp", 64, 64)
        widths = {layer.name: (layer.outputs, layer.inputs) for layer in block.layers}
        assert list(widths) == ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"]
        for name, shape in widths.items():
            assert backbone.network.get_submodule(f"{block.name}.{name}").weight.shape == shape
    assert BACKBONES[CNN].blocks == ()


@pytest.mark.parametrize("kind", KINDS)
def test_a_set_changes_nothing_at_first_then_acts_at_every_place_and_leaves_no_trace(
    kind: Kind, backbone: UncutBackbone
) -> None:
    plain, adapters = backbone(images()), TransformerAdapters(backbone.blocks, kind, RANK)
    assert torch.equal(backbone(images(), adapters), plain)
    for place, branch in adapters.branches():
        last = list(branch.parameters())[-1]
        with torch.no_grad():
            last.fill_(1)
            assert not torch.equal(backbone(images(), adapters), plain), place
            last.zero_()
    assert torch.equal(backbone(images()), plain)
    assert not any(module._forward_hooks for module in backbone.modules())


@pytest.mark.parametrize("kind", KINDS)
def test_maps_of_blocks_and_features_come_with_adapters(kind: Kind, backbone: UncutBackbone) -> None:
    adapters = learnt(kind, backbone)
    maps, features = backbone.stage_inputs(images(), adapters)
    bare, _ = backbone.stage_inputs(images())
    assert torch.equal(features, backbone(images(), adapters))
    assert [one.shape for one in maps] == [(2, 64, 2, 2)] * 4
    assert not any(torch.equal(one, other) for one, other in zip(maps, bare, strict=True))
    scales = MultiScaleBackbone(backbone, "grid")
    scales.adapters = adapters
    assert scales(images()).shape == (2, scales.feature_dim)


def test_the_mean_of_sets_is_the_mean_of_their_products_and_lengths_are_theirs(backbone: UncutBackbone) -> None:
    (_, one), (_, other) = (next(learnt("lora", backbone, seed).branches()) for seed in (1, 2))
    mean = copy.deepcopy(one)
    mean.weight.data = (one.weight.data + other.weight.data) / 2
    torch.testing.assert_close(mean.product(), (one.product() + other.product()) / 2)
    apart = (one.product() - other.product()).norm()
    torch.testing.assert_close(apart, (one.weight - other.weight).norm())


def test_a_projection_is_the_same_wherever_it_is_made_and_never_travels(backbone: UncutBackbone) -> None:
    one, other = (TransformerAdapters(backbone.blocks, "lora", RANK) for _ in range(2))
    assert set(one.state_dict()) == {
        f"{index}.{layer}.weight" for index in range(6) for layer in ("attn_qkv", "attn_proj", "mlp_fc1", "mlp_fc2")
    }
    drawn = [branch.projection for _, branch in one.branches()]
    assert all(torch.equal(mine, branch.projection) for mine, (_, branch) in zip(drawn, other.branches(), strict=True))
    assert len({mine.sum().item() for mine in drawn}) == len(drawn)  # each place has its own
    for mine in drawn:
        torch.testing.assert_close(mine @ mine.T, torch.eye(RANK))
    copied = copy.deepcopy(one)
    assert torch.equal(copied[0]["attn_qkv"].projection, drawn[0])


def test_folded_lora_answers_alike_and_a_bottleneck_or_a_shared_network_stays(backbone: UncutBackbone) -> None:
    extractor = AdaptedBackbone(copy.deepcopy(backbone))
    extractor.adapters = learnt("lora", backbone)
    before = extractor(images())
    assert not torch.allclose(before, backbone(images()), atol=1e-2)
    assert fold_low_rank(extractor) == 4 * 6
    assert extractor.adapters is None
    torch.testing.assert_close(extractor(images()), before, rtol=1e-5, atol=1e-5)
    extractor.adapters = learnt("bottleneck", backbone)
    assert fold_low_rank(extractor) == 0
    assert extractor.adapters is not None
    assert fold_low_rank(ParallelBackbones([extractor, AdaptedBackbone(extractor.backbone)])) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_single_images_are_those_of_batches_of_one(kind: Kind, backbone: UncutBackbone) -> None:
    extractor = AdaptedBackbone(backbone)
    extractor.adapters = learnt(kind, backbone)
    model = nn.Sequential(extractor, nn.Linear(64, 3))
    labels = torch.tensor([0, 1, 2])

    def loss(inputs: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(model(inputs), targets)

    private = PrivateGradients(model, loss, clip=1e6, noise_multiplier=0.0, expected=3, noise=SeededNoise(1))
    sums = private.clipped_sum(images(3), labels, torch.ones(3))
    (3 * loss(images(3), labels)).backward()  # type: ignore[no-untyped-call]
    trained = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert len(trained) == len(list(extractor.adapters.parameters())) + 2
    for name, gradient in trained.items():
        torch.testing.assert_close(sums[f"model.{name}"], gradient, rtol=1e-4, atol=1e-5)


def test_what_does_not_fit_is_refused(backbone: UncutBackbone) -> None:
    cnn = BACKBONES[CNN].cut(BACKBONES[CNN].assemble(None, None))
    for network, settings, words in (
        (cnn, {"adapter": "lora"}, "linear layers, and this network has none.*; or method.adapter: convolution"),
        (backbone, {"adapter": "convolution"}, "cannot be cut: .*; or method.adapter: lora .*streaming_ridge"),
        (backbone, {"adapter": "lora", "adapter_rank": 65}, "65 is more than the width of blocks.0.attn.qkv, 64"),
    ):
        with pytest.raises(ConfigError, match=words):
            new_adapters(AdaptedBackbone(network), AdapterSettings(name="dynammo", **settings))
    chosen = new_adapters(AdaptedBackbone(backbone), AdapterSettings(name="dynammo"))
    assert isinstance(chosen, TransformerAdapters)
    with pytest.raises(ValueError, match="shorter"):
        backbone(images(), nn.ModuleList([nn.Identity()]))


def test_a_block_is_as_it_was_told() -> None:
    with pytest.raises(ConfigError, match=r"2 is more than the width of b\.mlp, 1"):
        TransformerAdapters([Block("b", (), Layer("mlp", 1, 1))], "bottleneck", 2)
