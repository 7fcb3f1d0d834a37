from __future__ import annotations

from math import exp, log, sqrt

import pytest
import torch
from method_bench import Bench, bench, learn, rehearsal, state, toy_images
from plain_networks import Swap, cosine_head, images_of, plain_model
from torch import Tensor, nn

from dynammo_core.methods.podnet import pooled_distance
from dynammo_core.models.names import matching, travelling_names
from dynammo_core.plan import LossContext

# As for LUCIR: one image of class 0 with the cosines 1, 0, 0.6, -1 and one of class 2 with the cosines 0, 1, 0.8, 0.
VECTORS = [[1.0, 0.0], [0.0, 5.0], [0.6, 0.8], [-2.0, 0.0]]
IMAGES, LABELS = images_of((2, 0), (0, 3)), torch.tensor([0, 2])

# Scale 2 and margin 0.6. Image 0: others are worth ln(1 + e^1.2 + e^-2), the own class less its margin 2 (1 - 0.6).
# Image 1: ln(1 + e^2 + 1) against 2 (0.8 - 0.6).
CLASSIFICATION = (log(1 + exp(1.2) + exp(-2)) - 0.8 + log(2 + exp(2)) - 0.4) / 2


def loss(stage: str = "train", task: int = 1, taught_by: nn.Module | None = None, **params: object) -> float:
    made = bench("podnet", **{"proxies": 1, "margin": 0.6, **params})
    model = plain_model(cosine_head(VECTORS, scale=2.0), nn.Identity(), nn.Identity())
    teacher = plain_model(cosine_head(VECTORS[:2], scale=2.0), nn.Identity(), taught_by) if taught_by else None
    found = made.stage(stage, task)
    inputs = IMAGES if stage == "train" else model.extractor(IMAGES)
    return found.loss(model, inputs, LABELS, LossContext(task, found.inputs, teacher)).item()


def test_classification_by_hand() -> None:
    assert loss(taught_by=None) == pytest.approx(CLASSIFICATION)
    # Without a margin, image 0 costs ln(1 + e^1.2 + e^-2) - 2 < 0.5 and image 1 ln(2 + e^2) - 1.6.
    bare = (log(1 + exp(1.2) + exp(-2)) - 2, log(2 + exp(2)) - 1.6)
    assert bare[0] < 0 < bare[1]
    assert loss(margin=0.0) == pytest.approx(bare[1] / 2)  # what is far enough costs nothing


@pytest.mark.parametrize(("spatial", "flat"), [(3.0, 1.0), (0.0, 1.0), (3.0, 0.0), (0.5, 7.0)])
def test_distillation_weighs_maps_by_spatial_and_features_by_flat_by_hand(spatial: float, flat: float) -> None:
    # The teacher's first stage says the same, its second swaps the channels. Of one pixel, the pooled squares of
    # (2, 0) are 4, 0 by rows and 4, 0 by columns: (1, 0, 1, 0) / sqrt(2), and swapped (0, 1, 0, 1) / sqrt(2), sqrt(2)
    # away; so for both images. The mean over two stages is sqrt(2) / 2. Features at right angles: 1.
    # Four classes seen over two new ones: both grow by sqrt(2).
    expected = CLASSIFICATION + sqrt(2) * (spatial * sqrt(2) / 2 + flat * 1)
    assert loss(taught_by=Swap(), spatial=spatial, flat=flat) == pytest.approx(expected)


def test_what_the_teacher_says_as_well_costs_nothing() -> None:
    assert loss(taught_by=nn.Identity()) == pytest.approx(CLASSIFICATION)


def test_balancing_is_classification_alone_from_features() -> None:
    assert loss("balance") == pytest.approx(CLASSIFICATION)


def test_proxies_are_weighted_by_the_softmax_of_their_similarities_by_hand() -> None:
    # Class 0 has the cosines 1 and 0, weighted by e / (e + 1) and 1 / (e + 1); class 1 has 0 and 0. Scale 1, no margin,
    # label 1: the excess is e / (e + 1) - 0.
    made = bench("podnet", proxies=2, margin=0.0)
    model = plain_model(cosine_head([[1.0, 0], [0, 1], [0, 1], [0, -1]], scale=1.0, proxies=2), nn.Identity())
    value = made.stage("train", 0).loss(model, images_of((3, 0)), torch.tensor([1]), LossContext(0))
    assert value.item() == pytest.approx(exp(1) / (exp(1) + 1))


def test_pooled_distance_by_hand() -> None:
    # Squares of one channel of 2 x 3 pixels. First image: a single 4 at row 0, column 0: rows 4, 0 and columns 4, 0, 0,
    # at unit length 1, 0, 1, 0, 0 over sqrt(2). The teacher's single 9 stands at row 0, column 2: 1, 0, 0, 0, 1 over
    # sqrt(2). The distance is 1. Second image: the same map three times as bright, which is no distance at all.
    maps, taught = torch.zeros(2, 1, 2, 3), torch.zeros(2, 1, 2, 3)
    maps[0, 0, 0, 0], taught[0, 0, 0, 2] = 2, -3
    maps[1, 0], taught[1, 0] = torch.arange(6.0).view(2, 3), 3 * torch.arange(6.0).view(2, 3)
    assert pooled_distance(maps, taught).item() == pytest.approx(1 / 2, abs=1e-6)


def test_pooling_keeps_channels_apart() -> None:
    maps: Tensor = torch.zeros(1, 2, 2, 2)
    maps[0, 0] = 1
    assert pooled_distance(maps, maps.flip(1)).item() == pytest.approx(sqrt(2))


# The balanced stage


def trained(last: int) -> Bench:
    made = bench("podnet", proxies=2, train={"rounds": 1, "epochs": 2}, balance={"epochs": 2})
    learn(made, last)
    made.begin(last)
    return made


def test_the_balanced_stage_trains_the_classifier_and_nothing_else() -> None:
    made = trained(1)
    held, stage = rehearsal(1), made.stage("balance", 1)
    assert stage.learns_from(held).class_counts(8) == [3, 3, 3, 3, 0, 0, 0, 0]
    before = state(made)
    made.fit(stage, 1, stage.learns_from(held))
    after = state(made)
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    assert moved == {"heads.classes.weight", "heads.classes.scale"}


def test_stages_and_what_travels() -> None:
    made = trained(1)
    names = travelling_names(made.model)
    assert [stage.name for stage in made.method.stages(0)] == ["train", "remember"]
    assert [stage.name for stage in made.method.stages(1)] == ["imprint", "train", "balance", "remember"]
    balance = made.stage("balance", 1)
    assert matching(names, balance.up) == ["heads.classes.weight", "heads.classes.scale"]
    assert matching(names, balance.down) == names
    assert not matching(made.archive, balance.down)
    assert matching(names, made.stage("train", 1).up) == names


def test_the_old_proxies_stand_still_until_the_balanced_stage() -> None:
    made = trained(1)
    made.summarise(made.stage("imprint", 1), [rehearsal(1).new])
    made.finish("imprint", 1)
    images = toy_images((0, 1, 2, 3), each=3)
    for stage, still in (("train", True), ("balance", False)):
        made.model.zero_grad()
        made.loss(made.stage(stage, 1), 1, images).backward()
        slope = made.head.weight.grad
        assert slope is not None
        assert slope[4:].any(dim=1).all()
        assert slope[:4].any().item() is not still
