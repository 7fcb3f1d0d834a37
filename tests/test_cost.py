from __future__ import annotations

import pytest
import torch
from torch import nn

from dynammo_core.cost import MergedModel, TPassModel, cost_table, multiply_accumulates, parameter_count
from dynammo_core.models.backbones import Backbone, build_backbone
from dynammo_core.models.heads import OTHERS
from dynammo_core.settings import BackboneSettings

SIDE = 8
# Multiply-accumulates by hand, on maps of 8 x 8 = 64 pixels: a convolution makes in * out * (kernel area) of them a
# pixel, an adapter two 3x3 convolutions from c to c channels, a head in * out. Batch norm, ReLU, scaling count nothing.
PREFIX = 64 * 3 * 2 * 9
STAGES = 64 * (2 * 4 + 4 * 5)
ADAPTERS = 64 * 2 * 9 * (2 * 2 + 4 * 4)
HEAD = 5 * 4  # three classes and "others"
# Weights: the same without the pixels, plus a scale and a shift for each channel of a batch norm, an alpha, the biases.
BACKBONE_WEIGHTS = 3 * 2 * 9 + 2 * 4 + 4 * 5
ADAPTER_WEIGHTS = 2 * 9 * (2 * 2 + 4 * 4) + 2 * 2 * (2 + 4) + 2
HEAD_WEIGHTS = 5 * 4 + 4


def tiny() -> Backbone:
    """3 to 2 channels by 3x3, then 2 to 4 and 4 to 5 by 1x1, at full resolution and without biases."""
    stages = [nn.Conv2d(2, 4, 1, bias=False), nn.Conv2d(4, 5, 1, bias=False)]
    return Backbone(nn.Conv2d(3, 2, 3, padding=1, bias=False), stages, channels=(2, 4), feature_dim=5)


@pytest.mark.parametrize("tasks", [1, 2, 7])
def test_costs_by_hand(tasks: int) -> None:
    merged, t_pass = MergedModel(tiny(), tasks, 3), TPassModel(tiny(), tasks, 3)
    assert multiply_accumulates(tiny(), SIDE) == PREFIX + STAGES
    assert multiply_accumulates(merged, SIDE) == PREFIX + STAGES + ADAPTERS + tasks * HEAD
    assert multiply_accumulates(t_pass, SIDE) == PREFIX + tasks * (STAGES + ADAPTERS + HEAD)
    assert parameter_count(tiny()) == BACKBONE_WEIGHTS
    assert parameter_count(merged) == BACKBONE_WEIGHTS + ADAPTER_WEIGHTS + tasks * HEAD_WEIGHTS
    assert parameter_count(t_pass) == BACKBONE_WEIGHTS + tasks * (ADAPTER_WEIGHTS + HEAD_WEIGHTS)


def test_deployed_resnet18_costs_the_same_after_ten_tasks_as_after_one() -> None:
    backbone = build_backbone(BackboneSettings(name="resnet18", weights="random"), 0)
    one, ten = (multiply_accumulates(MergedModel(backbone, tasks, 10).to("meta"), 224) for tasks in (1, 10))
    assert ten - one == 9 * 512 * 11  # nine heads of 512 features and 11 rows
    assert ten / one < 1.001
    # One pass: 1.81 G of the backbone and 0.92 G of the adapters (models/test_adapters.py and test_backbones.py).
    assert one / 1e9 == pytest.approx(1.81 + 0.92, abs=0.02)
    t_one, t_ten = (multiply_accumulates(TPassModel(backbone, tasks, 10).to("meta"), 224) for tasks in (1, 10))
    prefix = multiply_accumulates(backbone.prefix, 224)
    assert t_one == one
    assert t_ten == prefix + 10 * (t_one - prefix)
    assert t_ten / ten > 9


@torch.no_grad()
def test_passes_with_equal_adapters_say_what_one_pass_says() -> None:
    backbone = build_backbone(BackboneSettings(name="small_cnn", weights="random"), 0)
    merged, t_pass = MergedModel(backbone, 3, 2).eval(), TPassModel(backbone, 3, 2).eval()
    for own in t_pass.adapter_sets:
        own.load_state_dict(merged.adapters.state_dict())
    t_pass.heads.load_state_dict(merged.heads.state_dict())
    images = torch.randn(2, 3, 16, 16)
    logits = merged(images)
    assert logits.shape == (2, 3, 3)
    torch.testing.assert_close(t_pass(images), logits)
    torch.testing.assert_close(logits[:, 1], merged.heads[1](backbone(images, merged.adapters)))
    nn.init.constant_(t_pass.adapter_sets[2][0].alpha, 5.0)
    assert [torch.allclose(t_pass(images)[:, task], logits[:, task]) for task in range(3)] == [True, True, False]


def test_heads_stand_for_their_tasks_classes() -> None:
    assert [head.rows for head in MergedModel(tiny(), 2, 3).heads] == [(0, 1, 2, OTHERS), (3, 4, 5, OTHERS)]


def test_a_table_has_a_row_for_each_model_and_number_of_tasks() -> None:
    settings = BackboneSettings(name="small_cnn", weights="random")
    rows = cost_table(settings, seed=0, image_size=32, classes_per_task=2, tasks=(1, 4), repeats=2)
    assert [(row["model"], row["tasks"]) for row in rows] == [
        (model, tasks) for tasks in (1, 4) for model in ("merged", "t_pass", "backbone")
    ]
    backbone = build_backbone(settings, 0)
    expected = {"merged": MergedModel(backbone, 4, 2), "t_pass": TPassModel(backbone, 4, 2), "backbone": backbone}
    for row in rows[3:]:
        module = expected[str(row["model"])]
        assert (row["macs"], row["parameters"]) == (multiply_accumulates(module, 32), parameter_count(module))
    assert all(isinstance(row["latency_ms"], float) and 0 < row["latency_ms"] < 1000 for row in rows)
    assert all(row.keys() == {"model", "tasks", "macs", "parameters", "latency_ms"} for row in rows)
