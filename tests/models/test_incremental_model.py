from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from dynammo_core.configuration.settings import BackboneSettings
from dynammo_core.models.adapters import AdapterSet
from dynammo_core.models.backbones import Backbone, build_backbone
from dynammo_core.models.description import untrained
from dynammo_core.models.heads import LinearHead
from dynammo_core.models.incremental_model import (
    POOLS,
    AdaptedBackbone,
    BlockwiseBackbone,
    IncrementalModel,
    MultiScaleBackbone,
    ParallelBackbones,
)
from dynammo_core.models.names import Level, matching, travelling_names
from dynammo_core.support.errors import ConfigError
from dynammo_core.support.seeding import seeded_initialisation

LEVELS: tuple[Level, ...] = ("images", "prefix", "features")


def extractor(*, alpha: float | None = 0.5, frozen: bool = True) -> AdaptedBackbone:
    """A small extractor in evaluation mode, with adapters unless `alpha` is None."""
    backbone = build_backbone(BackboneSettings(name="small_cnn", weights="random"), seed=0)
    made = AdaptedBackbone(backbone.freeze() if frozen else backbone)
    if alpha is not None:
        with seeded_initialisation(1):
            made.adapters = AdapterSet(backbone.channels, alpha)
    return made.eval()


def model(**options: bool) -> IncrementalModel:
    made = IncrementalModel(extractor(alpha=None).backbone)
    made.extractor = extractor(**options)
    made.heads["a"] = LinearHead(made.feature_dim, (3, 4))
    return made


def images() -> Tensor:
    return torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(2))


@torch.no_grad()
@pytest.mark.parametrize("alpha", [0.5, None])
def test_every_way_from_images_to_features_is_the_same(alpha: float | None) -> None:
    network = extractor(alpha=alpha)
    at: dict[Level, Tensor] = {"images": images()}
    at["prefix"] = network.embed(at["images"], start="images", end="prefix")
    at["features"] = network(at["images"])
    assert at["prefix"].shape == (3, 8, 8, 8)  # the first block of small_cnn: 8 channels, half of 16 pixels
    assert at["features"].shape == (3, 64)
    for i, start in enumerate(LEVELS):
        for end in LEVELS[i:]:
            assert torch.equal(network.embed(at[start], start=start, end=end), at[end])


@torch.no_grad()
def test_adapters_count_and_the_prefix_does_not_depend_on_them() -> None:
    with_adapters, without = extractor(), extractor(alpha=None)
    assert not torch.allclose(with_adapters(images()), without(images()))
    assert torch.equal(extractor(alpha=0.0)(images()), without(images()))
    assert torch.equal(without(images()), without.backbone(images()))
    prefixes = [network.embed(images(), start="images", end="prefix") for network in (with_adapters, without)]
    assert torch.equal(*prefixes)


def test_a_frozen_backbone_does_not_travel() -> None:
    names = travelling_names(model())
    assert not [name for name in names if "backbone" in name]
    adapters = {f"extractor.adapters.{name}" for name in AdapterSet((8, 16, 32), 0.5).state_dict()}
    assert set(names) == adapters | {"heads.a.weight", "heads.a.bias"}


def test_a_trainable_backbone_travels_with_its_statistics_but_without_counters() -> None:
    trained = model(frozen=False)
    names = travelling_names(trained)
    left = set(trained.state_dict()) - set(names)
    # One batch norm in each of the four blocks of small_cnn; the adapters' own keep no counter.
    assert len(left) == 4
    assert all(name.endswith(".num_batches_tracked") for name in left)
    assert "extractor.backbone.prefix.block0.1.running_var" in names
    assert names == [name for name in trained.state_dict() if name in set(names)]


def test_only_the_frozen_one_of_two_backbones_stays() -> None:
    pair = nn.ModuleDict({"old": extractor().backbone, "old2": extractor(frozen=False).backbone})
    names = travelling_names(pair)
    assert names
    assert all(name.startswith("old2.") for name in names)


def test_patterns_choose_names_in_the_names_order() -> None:
    names = ["heads.task1.bias", "extractor.adapters.0.alpha", "heads.auxiliary.bias", "heads.task0.bias"]
    assert matching(names, ("heads.task0*", "heads.task1.*")) == ["heads.task1.bias", "heads.task0.bias"]
    assert matching(names, ("*",)) == names
    assert matching(names, ("heads.task", "Heads.*", "")) == []
    assert matching(names, ()) == []
    assert matching(names, ("!heads.task0.*", "heads.task0*", "heads.task1.*")) == ["heads.task1.bias"]


def test_a_head_that_has_not_grown_is_missed_by_name() -> None:
    assert model().head("a").rows == (3, 4)
    with pytest.raises(KeyError, match="task7"):
        model().head("task7")


# Several passes side by side


def sharing(count: int) -> ParallelBackbones:
    """Parts with adapters of their own on one frozen backbone."""
    backbone = extractor(alpha=None).backbone
    parts = []
    for seed in range(count):
        part = AdaptedBackbone(backbone)
        with seeded_initialisation(seed):
            part.adapters = AdapterSet(backbone.channels, 0.5)
        parts.append(part)
    return ParallelBackbones(parts).eval()


def networks(count: int) -> ParallelBackbones:
    """Parts with a network of their own."""
    backbones = [
        build_backbone(BackboneSettings(name="small_cnn", weights="random"), seed=seed) for seed in range(count)
    ]
    return ParallelBackbones([AdaptedBackbone(backbone) for backbone in backbones]).eval()


def runs(module: nn.Module) -> list[int]:
    """The batch sizes that a module has seen, from now on."""
    seen: list[int] = []
    module.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    return seen


@torch.no_grad()
@pytest.mark.parametrize("make", [sharing, networks])
@pytest.mark.parametrize("count", [1, 3])
def test_features_of_all_parts_stand_in_a_row(make: Callable[[int], ParallelBackbones], count: int) -> None:
    parallel = make(count)
    assert parallel.feature_dim == 64 * count
    features = torch.cat([part(images()) for part in parallel.all_parts], dim=1)
    assert torch.equal(parallel(images()), features)
    assert len(features.view(3, count, 64).unique(dim=1)[0]) == count  # no two parts say the same
    for start in LEVELS:
        inputs = parallel.embed(images(), start="images", end=start)
        assert torch.equal(parallel.embed(inputs, start=start), features)
    assert parallel.newest is parallel.all_parts[-1]


@torch.no_grad()
def test_the_shared_prefix_runs_once_and_each_stage_once_for_each_part() -> None:
    parallel = sharing(3)
    prefix, stage = runs(parallel.newest.backbone.prefix), runs(parallel.newest.backbone.stages[0])
    parallel(images())
    assert (prefix, stage) == ([3], [3, 3, 3])
    maps = parallel.embed(images(), start="images", end="prefix")
    assert maps.shape == (3, 8, 8, 8)
    parallel.embed(maps, start="prefix")
    assert prefix == [3, 3]  # from the prefix on, it does not run again


@torch.no_grad()
def test_networks_of_their_own_share_nothing_and_start_from_the_image() -> None:
    parallel = networks(2)
    prefixes = [runs(part.backbone.prefix) for part in parallel.all_parts]
    assert torch.equal(parallel.embed(images(), start="images", end="prefix"), images())
    parallel(images())
    assert prefixes == [[3], [3]]


def test_a_shared_frozen_backbone_travels_under_none_of_its_names() -> None:
    made = model()
    made.extractor = sharing(2)
    names = travelling_names(made)
    assert [name for name in made.state_dict() if "parts.1.backbone" in name]  # the state dict holds it twice
    adapters = [
        f"extractor.parts.{part}.adapters.{name}"
        for part in range(2)
        for name in AdapterSet((8, 16, 32), 0.5).state_dict()
    ]
    assert names == [*adapters, "heads.a.weight", "heads.a.bias"]


def test_trainable_networks_travel_each_under_its_own_name() -> None:
    made = model(frozen=False)
    made.extractor = networks(2)
    names = travelling_names(made)
    one = [name for name in networks(1).state_dict() if "num_batches_tracked" not in name]
    assert names == [
        *(f"extractor.{name}" for name in one),
        *(f"extractor.{name.replace('parts.0.', 'parts.1.')}" for name in one),
        "heads.a.weight",
        "heads.a.bias",
    ]


@torch.no_grad()
@pytest.mark.parametrize("alpha", [0.5, None])
def test_pooled_are_the_means_and_spreads_of_each_stages_inputs_before_the_features(alpha: float | None) -> None:
    plain = extractor(alpha=alpha)
    means, spread, grid = (MultiScaleBackbone(plain.backbone, pooling).eval() for pooling in POOLS)
    for made in (means, spread, grid):
        made.adapters = plain.adapters
    pictures = torch.randn(3, 3, 24, 24)  # stages then see 12, 6 and 3 pixels: an odd side, too
    inputs, last = plain.backbone.stage_inputs(plain.backbone.prefix(pictures), plain.adapters)
    assert [maps.shape[-1] for maps in inputs] == [12, 6, 3]
    pixels = [maps.flatten(2).double().numpy() for maps in inputs]
    mean, deviation = (
        torch.tensor(np.concatenate([of(p, axis=2) for p in pixels], axis=1)) for of in (np.mean, np.std)
    )
    quarters = [  # by PyTorch's own pooling, which lets halves of an odd side share its middle, too
        torch.cat([adaptive_avg_pool2d(maps, 2)[:, :, row, column] for maps in inputs], dim=1)
        for row in (0, 1)
        for column in (0, 1)
    ]
    assert [made.feature_dim for made in (means, spread, grid)] == [times * (8 + 16 + 32) + 64 for times in (1, 2, 5)]
    for made, expected in (
        (means, [mean, last]),
        (spread, [mean, deviation, last]),
        (grid, [*quarters, deviation, last]),
    ):
        torch.testing.assert_close(made(pictures), torch.cat([e.float() for e in expected], dim=1))


@torch.no_grad()
def test_blocks_are_pooled_before_the_first_stage_too() -> None:
    plain = extractor()
    made = BlockwiseBackbone(plain.backbone).eval()
    made.adapters = plain.adapters
    maps, last = plain.backbone.stage_outputs(images(), plain.adapters)
    expected = [one.mean(dim=(2, 3)) for one in (plain.backbone.prefix(images()), *maps)]
    torch.testing.assert_close(made(images()), torch.cat([*expected, last], dim=1))
    for network, widths in (("small_cnn", (8, 16, 32, 64)), ("efficientnet_lite0", (16, 24, 40, 80, 112, 192, 320))):
        shapes = untrained(network, None)  # a Lite0 has seven blocks; its stem and head, single layers, are none
        assert BlockwiseBackbone(shapes, "spread").feature_dim == 2 * sum(widths) + shapes.feature_dim
    with pytest.raises(ConfigError, match="chain of blocks"):
        BlockwiseBackbone(Backbone(nn.Identity(), (), (), 4))


@torch.no_grad()
@pytest.mark.parametrize("start", LEVELS)
def test_the_last_features_are_the_backbones_own_from_every_level(start: Level) -> None:
    plain = extractor()
    for made in (
        BlockwiseBackbone(plain.backbone).eval(),
        *(MultiScaleBackbone(plain.backbone, pooling).eval() for pooling in POOLS),
    ):
        made.adapters = plain.adapters
        inputs = made.embed(images(), start="images", end=start)
        torch.testing.assert_close(made.embed_last(inputs, start=start), plain(images()))


def test_a_map_of_one_pixel_has_no_spread() -> None:
    backbone = extractor(alpha=None).backbone
    tiny = torch.randn(2, 3, 4, 4)  # the last stage of four that halve the side gets one pixel
    spread = MultiScaleBackbone(backbone, "spread").eval()(tiny)[:, 56:112]
    assert torch.equal(spread[:, 24:], torch.zeros(2, 32))
    assert (spread[:, :8] > 0).any()
