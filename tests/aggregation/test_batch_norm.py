from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from dynammo_core.aggregation.batch_norm import is_batch_norm_statistic, pool_batch_norm

MEAN, VARIANCE = "bn.running_mean", "bn.running_var"


def statistics(mean: float, variance: float) -> dict[str, Tensor]:
    return {MEAN: torch.tensor([mean]), VARIANCE: torch.tensor([variance])}


def test_means_and_variances_by_hand() -> None:
    # Weights 3 and 1, means 0 and 2, variances 1: E[mean] = 1/2, E[var + mean^2] = (3 * 1 + 1 * 5) / 4 = 2,
    # so the variance is 2 - 1/4. Averaging the variances would say 1.
    pooled = pool_batch_norm([statistics(0.0, 1.0), statistics(2.0, 1.0)], [3, 1])
    assert pooled == {MEAN: torch.tensor([0.5]), VARIANCE: torch.tensor([1.75])}


@given(
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=6),
    spread=st.floats(0, 20),
    seed=st.integers(0, 2**16),
)
def test_pooling_is_exact_for_the_concatenated_data(sizes: list[int], spread: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    parts = [rng.normal(rng.normal(0, spread, 3), rng.uniform(0.1, 2, 3), (size, 3)) for size in sizes]
    updates = [{MEAN: torch.from_numpy(p.mean(0)), VARIANCE: torch.from_numpy(p.var(0))} for p in parts]
    pooled, whole = pool_batch_norm(updates, sizes), np.concatenate(parts)
    np.testing.assert_allclose(pooled[MEAN], whole.mean(0), rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(pooled[VARIANCE], whole.var(0), rtol=1e-9, atol=1e-11)


def test_two_sites_batch_norm_layers_pool_to_the_layer_that_saw_all() -> None:
    layers = [nn.BatchNorm2d(4, momentum=1.0) for _ in range(3)]
    maps = torch.randn(6, 4, 5, 5, generator=torch.Generator().manual_seed(0)) + torch.arange(6.0).view(6, 1, 1, 1)
    for layer, seen in zip(layers, (maps[:2], maps[2:], maps), strict=True):
        layer(seen)
    updates = [{f"bn.{name}": tensor for name, tensor in layer.state_dict().items()} for layer in layers]
    pooled = pool_batch_norm(updates[:2], [2, 4])
    torch.testing.assert_close(pooled[MEAN], updates[2][MEAN])
    # torch's running variance has the factor n / (n - 1), n = 50, 100 and 150 pixels: 2 % apart at most.
    torch.testing.assert_close(pooled[VARIANCE], updates[2][VARIANCE], rtol=0.02, atol=0)
    naive = (2 * updates[0][VARIANCE] + 4 * updates[1][VARIANCE]) / 6
    assert (naive < 0.8 * pooled[VARIANCE]).all()


@given(
    mean=st.floats(-100, 100, width=32),
    variance=st.floats(0.0009765625, 1000, width=32),
    copies=st.integers(1, 7),
)
def test_pooling_equal_statistics_changes_no_bit(mean: float, variance: float, copies: int) -> None:
    pooled = pool_batch_norm([statistics(mean, variance)] * copies, [5.0] * copies)
    assert pooled == statistics(mean, variance)


@given(factor=st.floats(0.01, 1000))
def test_only_the_ratio_of_weights_counts(factor: float) -> None:
    updates = [statistics(-1.0, 0.5), statistics(4.0, 2.0), statistics(0.0, 1.0)]
    pooled = pool_batch_norm(updates, [1, 2, 5])
    scaled = pool_batch_norm(updates, [factor, 2 * factor, 5 * factor])
    torch.testing.assert_close(scaled, pooled)


def test_rounding_makes_no_negative_variance() -> None:
    # In float64 E[mean^2] - mean^2 of 3 equal means can be some 1e-10 below zero, and sqrt(var) then has no value.
    means = torch.linspace(100, 1000, 1000, dtype=torch.float64)
    updates = [{MEAN: means, VARIANCE: torch.zeros(1000, dtype=torch.float64)}] * 3
    pooled = pool_batch_norm(updates, [1, 1, 1])[VARIANCE]
    assert pooled.min() >= 0
    assert pooled.max() < 1e-8


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_other_tensors_are_left_out_and_types_stay(dtype: torch.dtype) -> None:
    update = {MEAN: torch.ones(2, dtype=dtype), VARIANCE: torch.ones(2, dtype=dtype), "bn.weight": torch.ones(2)}
    pooled = pool_batch_norm([update, update], [1, 1])
    assert {name: tensor.dtype for name, tensor in pooled.items()} == {MEAN: dtype, VARIANCE: dtype}


def test_names_of_statistics() -> None:
    names = nn.ModuleDict({"bn": nn.BatchNorm2d(1), "conv": nn.Conv2d(1, 1, 1)}).state_dict()
    assert [name for name in names if is_batch_norm_statistic(name)] == [MEAN, VARIANCE]
