"""Random features: the same at both ends, on no wire and in no file, and classified by the exact sums."""

from __future__ import annotations

import torch
from method_bench import STREAM, Bench, bench, halves, learn_sums, uneven

from dynammo_core.methods.feature_maps import MappedBackbone
from dynammo_core.methods.ranpac import RandomProjection, _drawn
from dynammo_core.models.names import travelling_names
from dynammo_core.models.ridge.head import RidgeHead


def extractor(made: Bench) -> MappedBackbone:
    assert isinstance(made.model.extractor, MappedBackbone)
    return made.model.extractor


def test_the_classifier_is_ridge_regression_of_all_images_on_random_features() -> None:
    made = bench("ranpac", regulariser=0.1, projection_size=48)
    for task in range(2):
        learn_sums(made, task, halves(uneven(STREAM.classes(task))), ("count", "sum"))
    everything, head = uneven(STREAM.seen(1)), made.head
    assert isinstance(head, RidgeHead)
    with torch.no_grad():
        plain = extractor(made).inner(made.inputs(bench("fine_tune").fits(0)[0], everything))
        random = (plain @ extractor(made).feature_map.get_buffer("weight")).clamp_min(0)
    assert plain.shape[1] == extractor(made).inner.feature_dim == 64  # the last features alone
    pooled = RidgeHead(48, head.rows)
    pooled.sample_weight.copy_(head.sample_weight)
    pooled.add(random, everything.labels)
    pooled.solve(0.1, torch.full((4,), 0.25, dtype=torch.float64))
    torch.testing.assert_close(head.gram, pooled.gram, atol=1e-9, rtol=1e-5)
    torch.testing.assert_close(head.weight, pooled.weight, atol=1e-5, rtol=1e-4)


def test_both_ends_draw_the_same_features_from_the_settings_and_send_none() -> None:
    ends = [bench("ranpac", projection_size=32) for _ in range(2)]
    for place, made in enumerate(ends):
        torch.manual_seed(place)
        made.begin(0)
        assert not any("feature_map" in name for name in made.model.state_dict())
        assert not any(name.startswith("extractor") for name in travelling_names(made.model))
    first, second = (extractor(made).feature_map.get_buffer("weight") for made in ends)
    assert torch.equal(first, second)
    assert not torch.equal(first, RandomProjection(*first.shape, seed=1).weight)


def test_random_features_are_as_long_as_features_on_average() -> None:
    features = torch.rand(20, 64)
    ratio = RandomProjection(64, 4000, seed=0)(features).norm(dim=1) / features.norm(dim=1)
    torch.testing.assert_close(ratio, torch.ones(20), atol=0.1, rtol=0)


def test_a_model_of_shapes_alone_leaves_the_numbers_to_those_that_follow_it() -> None:
    with torch.device("meta"):
        shapes = RandomProjection(6, 5, seed=7)
    assert shapes.weight.is_meta
    assert torch.equal(RandomProjection(6, 5, seed=7).weight, _drawn.__wrapped__(6, 5, 7))
