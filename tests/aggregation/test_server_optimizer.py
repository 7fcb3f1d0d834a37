"""The server's optimiser against the papers' lines, written out for single numbers, and what it leaves alone."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from small_runs import small_config
from torch import Tensor

from dynammo_core.aggregation.server_optimizer import forget_rounds, stepped
from dynammo_core.configuration.config import Scalar
from dynammo_core.configuration.federation import FederationSettings

Tensors = dict[str, Tensor]
MEANS = (0.5, 0.3, 0.9)
"""What the sites' weight is merged into in three rounds."""


def settings(optimizer: str, **others: Scalar) -> FederationSettings:
    changes = {f"federation.server_{name}": value for name, value in others.items()}
    return small_config("replay", {"federation.server_optimizer": optimizer, **changes}).federation


def momentum(x: float, mean: float, m: float, v: float) -> tuple[float, float, float]:
    m = 0.9 * m + (mean - x)
    return x + 0.1 * m, m, v


def adam(x: float, mean: float, m: float, v: float) -> tuple[float, float, float]:
    m = 0.9 * m + 0.1 * (mean - x)
    v = 0.99 * v + 0.01 * (mean - x) ** 2
    return x + 0.1 * m / (math.sqrt(v) + 0.5), m, v


def yogi(x: float, mean: float, m: float, v: float) -> tuple[float, float, float]:
    m = 0.9 * m + 0.1 * (mean - x)
    v = v - 0.01 * (mean - x) ** 2 * math.copysign(1, v - (mean - x) ** 2)
    return x + 0.1 * m / (math.sqrt(v) + 0.5), m, v


@pytest.mark.parametrize("rule", [momentum, adam, yogi])
def test_three_rounds_are_those_of_the_paper(rule: Callable[..., tuple[float, float, float]]) -> None:
    how = settings(rule.__name__, learning_rate=0.1, tau=0.5)
    archive: Tensors = {}
    x, m, v = 0.2, 0.0, 0.5**2
    weights = {"w": torch.tensor([x], dtype=torch.float64)}
    for mean in MEANS:
        x, m, v = rule(x, mean, m, v)
        weights = stepped(how, weights, {"w": torch.tensor([mean], dtype=torch.float64)}, weights, {}, archive)
        assert weights["w"].item() == pytest.approx(x, rel=1e-12)
    assert len(archive) == (1 if rule is momentum else 2)
    forget_rounds(archive)
    assert not archive


def test_without_momentum_and_at_rate_1_the_server_goes_all_the_way() -> None:
    sent, merged = {"w": torch.rand(5, 7)}, {"w": torch.rand(5, 7)}
    after = stepped(settings("momentum", momentum=0.0), sent, merged, sent, {}, {})
    assert torch.equal(after["w"], merged["w"])


def test_statistics_and_rows_of_classes_without_a_sample_are_as_merged_whatever_is_remembered() -> None:
    names = ("heads.classes.weight", "heads.classes.bias", "bn.running_mean", "bn.running_var")
    current = dict(zip(names, (torch.zeros(2, 3), torch.zeros(2), torch.zeros(3), torch.ones(3)), strict=True))
    rows = dict.fromkeys(names[:2], (0, 1))
    both = {name: tensor + 0.25 for name, tensor in current.items()}
    for optimizer in ("momentum", "adam", "yogi"):
        archive: Tensors = {}
        first = stepped(settings(optimizer), current, both, current, rows, archive)
        before = {name: tensor.clone() for name, tensor in archive.items()}
        # Sent with what compression rounds away; class 1 has no sample, so its row is merged as the server has it.
        sent = {name: tensor + 1e-3 for name, tensor in first.items()}
        merged = {name: tensor + 0.5 for name, tensor in first.items()}
        for name in rows:
            merged[name][1] = first[name][1]
        second = stepped(settings(optimizer), sent, merged, first, rows, archive)
        for name in names[2:]:
            assert torch.equal(second[name], merged[name])
            assert not any(name in key for key in archive)
        for name in rows:
            assert torch.equal(second[name][1], first[name][1])
            assert not torch.equal(second[name][0], merged[name][0])
        for key, tensor in archive.items():
            assert torch.equal(tensor[1], before[key][1])
            assert not torch.equal(tensor[0], before[key][0])
