"""Each family of networks gives, cut or in one piece, what its own uncut network gives."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from dynammo_core.methods.adapters import AdapterSettings
from dynammo_core.models import BACKBONES
from dynammo_core.models.adapters import AdapterSet
from dynammo_core.models.backbones import Backbone
from dynammo_core.models.description import untrained
from dynammo_core.models.folding import fold_low_rank
from dynammo_core.models.incremental_model import AdaptedBackbone, MultiScaleBackbone
from dynammo_core.models.timm_networks.catalogue import TimmSpec, find
from dynammo_core.models.transformers.adapters import Kind, LowRank, TransformerAdapters
from dynammo_core.support.errors import ConfigError
from dynammo_core.support.seeding import seeded_initialisation

KINDS: tuple[Kind, ...] = ("lora", "bottleneck")

CHAINS = {
    "resnet10t": (64, 64, 128, 256),
    "regnetx_002": (32, 24, 56, 152),
    "tf_efficientnet_lite0": (16, 24, 40, 112),
    "mobilenetv3_small_050": (16, 8, 16, 24),
    "convnext_atto": (40, 40, 80, 160),
}
"""Networks that can be cut, and the channels at their insertion points; images of 32 pixels suffice."""

WHOLE = {"vit_tiny_patch16_224": (32, (192,) * 4), "swin_tiny_patch4_window7_224": (64, (96, 192, 384))}
"""Networks in one piece: the side of the images, and the channels of their maps."""

OF_TESTS = {
    **{"test_byobnet": 32, "test_coatnet": 160, "test_efficientnet_evos": 32, "test_mambaout": 32},
    **{"test_nfnet": 32, "test_vit2": 32},
}
"""Small members of other families, which timm has for its own tests."""

MORE = {
    **{"resnetv2_50": 32, "efficientnet_b0": 32, "convnextv2_atto": 32, "repvgg_a0": 32, "ghostnet_050": 32},
    **{"densenet121": 32, "mobilenetv4_conv_small_035": 32, "nfnet_l0": 32, "vgg11": 32},
    **{"deit_tiny_distilled_patch16_224": 32, "vit_small_patch14_reg4_dinov2": 28, "vit_small_patch16_dinov3": 32},
    **{"vit_base_patch16_siglip_224": 32, "beit_base_patch16_224": 32, "eva02_tiny_patch14_224": 28},
    **{"swinv2_cr_tiny_ns_224": 224, "maxvit_rmlp_pico_rw_256": 256, "coatnet_pico_rw_224": 224, "mobilevit_xxs": 64},
    **{"xcit_nano_12_p16_224": 32, "poolformer_s12": 32, "efficientformer_l1": 224, "tiny_vit_5m_224": 224},
    **{"crossvit_tiny_240": 240, "hrnet_w18_small": 64, "fastvit_t8": 64, "edgenext_xx_small": 64, "levit_128s": 64},
    **{"pvt_v2_b0": 64, "mixer_s32_224": 224, "davit_tiny": 64, "hiera_tiny_224": 224, "inception_v3": 96},
    **{"vit_small_r26_s32_224": 64, "inception_next_atto": 64, "test_vit_relpos": 160},
    **{"cait_xxs24_224": 32, "convit_tiny": 224, "mvitv2_tiny": 224, "volo_d1_224": 224, "pit_ti_224": 224},
    **{"eva02_base_patch14_224": 28, "naflexvit_base_patch16_gap": 32, "swinv2_tiny_window8_256": 256},
}
"""The side of the images for the smallest members of many families."""

FUSED, GATED = {"attn.qkv", "attn.proj"}, {"mlp.fc1_g", "mlp.fc1_x", "mlp.fc2"}
PLAIN = {"mlp.fc1", "mlp.fc2"}
LAYERS = {
    "vit_small_plus_patch16_dinov3": FUSED | GATED,
    "eva02_base_patch14_224": {"attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.proj"} | GATED,
    "cait_xxs24_224": FUSED | PLAIN | {"attn.q", "attn.k", "attn.v"},  # not proj_l and proj_w, which mix heads
    "mvitv2_large": FUSED | PLAIN,  # with MLPs that give more than they take
}
"""The layers beside which LoRA goes."""
MORE_LAYERS = {
    "vit_small_patch14_reg4_dinov2": FUSED | PLAIN,
    "vit_giant_patch14_dinov2": FUSED | PLAIN,  # both halves of its gate are one layer
    "aimv2_large_patch14_224": FUSED | GATED,
    "eva02_tiny_patch14_224": {"attn.proj"} | PLAIN,  # it reads the weights of attn.qkv, and never calls it
    "vit_base_patch16_siglip_224": FUSED | PLAIN,
    "convit_tiny": FUSED | PLAIN | {"attn.qk", "attn.v"},  # not pos_proj, which takes positions
    "hiera_tiny_224": FUSED | PLAIN,
    "pvt_v2_b0": {"attn.q", "attn.kv", "attn.proj"} | PLAIN,
}


def images(side: int) -> Tensor:
    drawn = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(3))
    return drawn.contiguous(memory_format=torch.channels_last)  # as they come in a run


@torch.no_grad()
def check(name: str, side: int) -> tuple[int, ...]:
    """Compare a backbone with the uncut network, and return the channels of its maps."""
    spec = BACKBONES[f"timm/{name}"]
    with seeded_initialisation(1):
        network = spec.assemble(None, side).eval()
    expected = network.forward_head(network.forward_features(images(side)), pre_logits=True)
    backbone = spec.cut(network).freeze().to(memory_format=torch.channels_last)
    assert expected.shape == (2, spec.feature_dim), name
    entered = backbone.prefix(images(side))
    kept = entered.clone()
    maps, features = backbone.stage_inputs(entered)
    for found in (features, backbone(images(side)), copy.deepcopy(backbone)(images(side))):
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max(), name
    assert torch.equal(entered, kept), name
    assert [one.shape[:2] for one in maps] == [(2, channels) for channels in backbone.map_channels], name
    assert all(one.ndim == 4 for one in maps), name
    if maps:
        assert MultiScaleBackbone(backbone, "grid")(images(side)).isfinite().all(), name
    acts_everywhere(name, backbone, side)
    return backbone.map_channels


def acts_everywhere(name: str, backbone: Backbone, side: int) -> None:
    """Put an adapter of its own at each insertion point, or at each place in blocks; networks without say why."""
    plain = backbone(images(side))
    adapters = AdapterSet(backbone.channels, alpha=1.0).train()
    for index in range(len(adapters)):
        alone = [adapter if place == index else nn.Identity() for place, adapter in enumerate(adapters)]
        assert not torch.equal(backbone(images(side), alone), plain), (name, index)
    assert bool(len(adapters)) != bool(backbone.obstacle), name
    if backbone.blocks:
        acts_in_blocks(name, audible(backbone), side)
        folds(name, audible(backbone), side)


def audible(backbone: Backbone) -> Backbone:
    """Copy a network, with scales of 1 where they start near 0 and would hide what its blocks add."""
    copied = copy.deepcopy(backbone)
    for key, parameter in copied.named_parameters():
        if "gamma" in key or (key.endswith("weight") and parameter.ndim == 1 and not parameter.any()):
            nn.init.ones_(parameter)
    return copied


def acts_in_blocks(name: str, backbone: Backbone, side: int) -> None:
    plain = backbone(images(side))
    for kind in KINDS:
        tokens = TransformerAdapters(backbone.blocks, kind, 8)  # of fewer numbers each could be cut off by ReLU
        assert torch.equal(backbone(images(side), tokens), plain), name
        for place, branch in tokens.branches():
            last = next((branch if isinstance(branch, LowRank) else branch.get_submodule("up")).parameters())
            with seeded_initialisation(place):
                nn.init.normal_(last)
            assert not torch.equal(backbone(images(side), tokens), plain), (name, kind, place)
            nn.init.zeros_(last)


def folds(name: str, backbone: Backbone, side: int) -> None:
    """Compare LoRA beside a network with LoRA in its weights."""
    extractor = AdaptedBackbone(backbone)
    bare = extractor(images(side))
    extractor.adapters = TransformerAdapters(backbone.blocks, "lora", 2)
    with seeded_initialisation(2):
        for parameter in extractor.adapters.parameters():
            nn.init.normal_(parameter, std=0.1)
    beside = extractor(images(side))
    assert (beside - bare).abs().max() > 1e-2 * bare.abs().max(), name
    fold_low_rank(extractor)
    assert (extractor(images(side)) - beside).abs().max() <= 1e-4 * beside.abs().max(), name


def test_the_common_families_give_what_their_uncut_networks_give() -> None:
    for name, channels in CHAINS.items():
        assert check(name, 32) == channels == BACKBONES[f"timm/{name}"].channels
    for name, (side, channels) in WHOLE.items():
        assert check(name, side) == channels
        spec = BACKBONES[f"timm/{name}"]
        assert (spec.insertion_points, len(spec.places)) == ((), 12)
    for name, side in OF_TESTS.items():
        check(name, side)


@pytest.mark.soak
def test_all_other_families_do_too() -> None:
    for name, side in MORE.items():
        check(name, side)


def test_adapters_go_beside_every_layer_of_tokens_and_the_default_rank_fits() -> None:
    adapters_go_beside(LAYERS)


@pytest.mark.soak
def test_so_they_do_in_more_families() -> None:
    adapters_go_beside(MORE_LAYERS)


@torch.no_grad()
def adapters_go_beside(expected: dict[str, set[str]]) -> None:
    for name, layers in expected.items():
        spec = BACKBONES[f"timm/{name}"]
        assert isinstance(spec, TimmSpec)
        assert {layer.name for block in spec.blocks for layer in block.layers} == layers, name
        backbone = untrained(f"timm/{name}", None)
        with torch.device("meta"):
            for kind in KINDS:
                adapters = TransformerAdapters(spec.blocks, kind, AdapterSettings(name="dynammo").adapter_rank)
                image = torch.empty(1, 3, spec.source.image_size, spec.source.image_size)
                assert backbone(image, adapters).shape == (1, spec.feature_dim), (name, kind)


@pytest.mark.parametrize("name", ["gemma4_vit_167m_enc", "mobilenetv5_300m_enc"])
def test_a_network_without_features_for_classes_is_refused_with_the_reason(name: str) -> None:
    with pytest.raises(ConfigError, match=f"timm/{name} gives no features for classes .*image classifier"):
        find(f"timm/{name}")


def test_a_network_whose_maps_are_not_told_by_shapes_alone_gives_none() -> None:
    spec = find("timm/gemma4_vit_167m")
    assert (spec.maps, spec.feature_dim) == ({}, 768)
