from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import nn

from dynammo_core.configuration.settings import BackboneSettings, MethodSettings
from dynammo_core.methods import METHODS
from dynammo_core.methods.settings.adapters import DynaMMoSettings
from dynammo_core.models.backbones import Backbone
from dynammo_core.scoring.cost import (
    COMPARED,
    Deployed,
    adapter_costs,
    cost_table,
    deployed_after,
    macs_table,
    method_settings,
    multiply_accumulates,
)
from dynammo_core.support.errors import ConfigError

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
SMALL = BackboneSettings(name="small_cnn", weights="random")


def tiny() -> Backbone:
    """3 to 2 channels by 3x3, then 2 to 4 and 4 to 5 by 1x1, at full resolution and without biases."""
    stages = [nn.Conv2d(2, 4, 1, bias=False), nn.Conv2d(4, 5, 1, bias=False)]
    return Backbone(nn.Conv2d(3, 2, 3, padding=1, bias=False), stages, channels=(2, 4), feature_dim=5)


def defaults(names: Sequence[str]) -> list[MethodSettings]:
    return [METHODS[name].Params(name=name) for name in names]


def deployed(name: str, tasks: int) -> Deployed:
    return deployed_after(tasks, defaults([name])[0], tiny(), 3)


@pytest.mark.parametrize("tasks", [1, 2, 7])
def test_costs_by_hand(tasks: int) -> None:
    costs = {
        # one pass, whatever the tasks
        "dynammo": (
            PREFIX + STAGES + ADAPTERS + tasks * HEAD,
            BACKBONE_WEIGHTS + ADAPTER_WEIGHTS + tasks * HEAD_WEIGHTS,
        ),
        # a pass for each task behind one prefix
        "acl": (
            PREFIX + tasks * (STAGES + ADAPTERS + HEAD),
            BACKBONE_WEIGHTS + tasks * (ADAPTER_WEIGHTS + HEAD_WEIGHTS),
        ),
        # a network for each task, and one classifier of 3 T rows on 5 T features
        "dynamic_er": (
            tasks * (PREFIX + STAGES) + 3 * tasks * 5 * tasks,
            tasks * BACKBONE_WEIGHTS + 3 * tasks * (5 * tasks + 1),
        ),
        # the bare network and a classifier of 3 T rows on 5 features
        "fine_tune": (PREFIX + STAGES + 3 * tasks * 5, BACKBONE_WEIGHTS + 3 * tasks * (5 + 1)),
    }
    assert set(costs) == set(COMPARED)
    for name, (macs, parameters) in costs.items():
        model = deployed(name, tasks)
        assert multiply_accumulates(model, SIDE) == macs, name
        assert model.parameter_count() == parameters, name


def test_what_a_model_costs_is_what_answers() -> None:
    model = deployed("dynammo", 2)
    labels = model(torch.randn(4, 3, SIDE, SIDE))
    assert labels.shape == (4,)
    assert set(labels.tolist()) <= set(range(6))


def test_resnet18_at_224_pixels_costs_what_the_papers_say() -> None:
    # DynaMMo: 2.61 GMAC in one pass with unpadded adapters. ACL: a pass a task behind the shared first convolution and
    # pooling, 25.1 GMAC for ten. DER without pruning: ten whole networks of 1.81 GMAC.
    methods = method_settings(COMPARED, DynaMMoSettings(name="dynammo", padding=0))
    rows = macs_table(backbones=("resnet18",), methods=methods, tasks=(1, 10))
    macs = {(row["method"], row["tasks"]): float(str(row["macs"])) / 1e9 for row in rows}
    assert len(rows) == 2 * len(COMPARED)
    assert macs["dynammo", 1] == pytest.approx(2.61, abs=0.01)
    assert macs["dynammo", 10] / macs["dynammo", 1] == pytest.approx(1, abs=1e-3)
    assert macs["acl", 1] == macs["dynammo", 1]
    assert macs["acl", 10] == pytest.approx(25.1, abs=0.05)
    assert macs["dynamic_er", 10] == pytest.approx(10 * 1.814, abs=0.01)
    assert macs["fine_tune", 10] == pytest.approx(1.814, abs=0.001)
    assert all(row["backbone"] == "resnet18" for row in rows)


def test_padded_adapters_cost_more() -> None:
    (padded,) = method_settings(["dynammo"], DynaMMoSettings(name="dynammo"))
    rows = macs_table(backbones=("resnet18",), methods=[padded], tasks=(1,))
    # 0.92 G of the adapters (models/test_adapters.py) on 1.81 G of the backbone (models/test_backbones.py)
    assert float(str(rows[0]["macs"])) / 1e9 == pytest.approx(2.74, abs=0.01)


def test_other_methods_take_over_the_parameters_they_share() -> None:
    given = DynaMMoSettings(name="dynammo", padding=0, alpha=0.3, merge="last")
    dynammo, acl, replay = method_settings(["dynammo", "acl", "replay"], given)
    assert dynammo == given
    assert (acl.name, acl.model_dump()["padding"], acl.model_dump()["alpha"]) == ("acl", 0, 0.3)
    assert replay == METHODS["replay"].Params(name="replay")


def test_an_unknown_method_is_named() -> None:
    with pytest.raises(ConfigError, match=r"'dynamo' \(did you mean 'dynammo'\?\)"):
        method_settings(["dynamo"], DynaMMoSettings(name="dynammo"))


def test_a_table_has_a_row_for_each_method_and_number_of_tasks() -> None:
    methods = defaults(["acl", "dynammo"])
    rows = cost_table(SMALL, methods, seed=0, image_size=32, classes_per_task=2, tasks=(1, 4), repeats=2)
    assert [(row["method"], row["tasks"]) for row in rows] == [("acl", 1), ("dynammo", 1), ("acl", 4), ("dynammo", 4)]
    assert rows[0]["macs"] == rows[1]["macs"]
    assert float(str(rows[2]["macs"])) > 2 * float(str(rows[3]["macs"]))
    assert all(isinstance(row["latency_ms"], float) and 0 < row["latency_ms"] < 1000 for row in rows)
    assert all(row.keys() == {"method", "tasks", "macs", "parameters", "latency_ms"} for row in rows)


def test_adapters_of_each_form_are_counted_where_they_have_a_place() -> None:
    rows = {(row["backbone"], row["adapters"]): row for row in adapter_costs(["small_cnn", "timm/test_vit"], 160)}
    assert list(rows) == [("small_cnn", form) for form in ("none", "full", "low_rank", "depthwise")] + [
        ("timm/test_vit", form) for form in ("none", "lora", "bottleneck")
    ]
    # Channels 8, 16, 32: kernels, then two batch norms (of c / 8 and c channels for low rank) and an alpha.
    beside = 4 * (8 + 16 + 32) + 3
    kernels = {"full": 18 * (64 + 256 + 1024), "depthwise": 18 * 56 + 2 * (64 + 256 + 1024)}
    for form, weights in kernels.items():
        counted = rows["small_cnn", form]
        statistics = 4 * 56  # running means and variances travel, too
        assert counted["adapter_parameters"] == weights + beside + statistics
        assert counted["round_mb"] == f"{(weights + beside + statistics) * 4 / 1e6:.3g}"
    features = 8 + 16 + 32 + 64
    assert rows["small_cnn", "none"]["sums_mb"] == f"{features * (features + 1) * 4 / 1e6:.3g}"
    # LoRA trains and sends B of each of six blocks' four layers, and costs a prediction nothing.
    layers = 6 * 8 * (192 + 64 + 192 + 64)
    lora, bare = rows["timm/test_vit", "lora"], rows["timm/test_vit", "none"]
    assert (lora["adapter_parameters"], lora["round_mb"]) == (layers, f"{layers * 4 / 1e6:.3g}")
    assert (lora["gmac"], lora["sums_mb"]) == (bare["gmac"], "")
    assert rows["timm/test_vit", "bottleneck"]["adapter_parameters"] == 6 * (2 * 8 * 64 + 8 + 64)
