from __future__ import annotations

from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dynammo_core.merging.operators import MERGE_OPERATORS, MergeOperator, merge_last, merge_mean
from dynammo_core.methods.dynammo import DynaMMoSettings
from dynammo_core.models.adapters import AdapterSet
from dynammo_core.seeding import seeded_initialisation

operators = pytest.mark.parametrize("operator", MERGE_OPERATORS.values(), ids=list(MERGE_OPERATORS))


def adapter_state(seed: int, batches: int = 1) -> dict[str, Tensor]:
    """The state of an adapter set whose batch norms have seen something."""
    with seeded_initialisation(seed):
        adapters = AdapterSet((3, 5), alpha=0.1 + seed).train()
        for _ in range(batches):
            for adapter, width in zip(adapters, (3, 5), strict=True):
                adapter(torch.randn(4, width, 6, 6) + seed)
    return {name: tensor.clone() for name, tensor in adapters.state_dict().items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@operators
@pytest.mark.parametrize("copies", [1, 2, 3, 7])
def test_equal_sets_merge_to_themselves_bit_for_bit(operator: MergeOperator, copies: int) -> None:
    state = adapter_state(1)
    merged = operator([state] * copies)
    assert equal(merged, state)


@operators
def test_a_merged_set_loads_and_shares_no_memory_with_its_sources(operator: MergeOperator) -> None:
    sets = [adapter_state(seed) for seed in range(3)]
    before = [{name: tensor.clone() for name, tensor in state.items()} for state in sets]
    merged = operator(sets)
    assert {name: tensor.dtype for name, tensor in merged.items()} == {n: t.dtype for n, t in sets[0].items()}
    AdapterSet((3, 5), alpha=0.5).load_state_dict(merged, strict=True)
    for tensor in merged.values():
        tensor.fill_(7)
    assert all(map(equal, sets, before))


def test_mean_by_hand() -> None:
    # (1 + 2 + 6) / 3 = 3. Statistics of means 0, 3, 3 and variances 1: mean 2, variance 1 + (0 + 9 + 9) / 3 - 4 = 3.
    sets = [
        {"w": torch.tensor([w]), "bn.running_mean": torch.tensor([mean]), "bn.running_var": torch.ones(1)}
        for w, mean in ((1.0, 0.0), (2.0, 3.0), (6.0, 3.0))
    ]
    expected = {"w": [3.0], "bn.running_mean": [2.0], "bn.running_var": [3.0]}
    torch.testing.assert_close(merge_mean(sets), {name: torch.tensor(value) for name, value in expected.items()})


@given(seeds=st.lists(st.integers(0, 20), min_size=1, max_size=5), order=st.randoms(use_true_random=False))
def test_mean_does_not_depend_on_the_order_and_is_convex(seeds: list[int], order: Random) -> None:
    sets = [adapter_state(seed) for seed in seeds]
    merged = merge_mean(sets)
    torch.testing.assert_close(merge_mean(order.sample(sets, len(sets))), merged, rtol=1e-6, atol=1e-6)
    for name, tensor in merged.items():
        stacked = torch.stack([state[name] for state in sets])
        assert (tensor >= stacked.amin(0) - 1e-5).all()
        if not name.endswith("running_var"):  # the spread of the means comes on top
            assert (tensor <= stacked.amax(0) + 1e-5).all()


def test_pooled_variances_hold_the_spread_of_the_means() -> None:
    sets = [adapter_state(seed, batches=30) for seed in (0, 4)]
    name = "0.residual.1.running_var"
    assert (merge_mean(sets)[name] > 1.05 * (sets[0][name] + sets[1][name]) / 2).any()


def test_last_is_the_newest_set_whatever_came_before() -> None:
    sets = [adapter_state(seed) for seed in range(3)]
    assert equal(merge_last(sets), sets[2])
    assert equal(merge_last([sets[0], sets[2]]), sets[2])


def test_every_operator_can_be_configured_and_nothing_else() -> None:
    for name in MERGE_OPERATORS:
        assert DynaMMoSettings(name="dynammo", merge=name).merge == name  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'mean' or 'last'"):
        DynaMMoSettings(name="dynammo", merge="median")  # type: ignore[arg-type]
