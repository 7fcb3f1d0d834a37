"""What holds of every merge operator, and of the averages by hand."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dynammo_core.merging import MERGE_OPERATORS
from dynammo_core.merging.averages import merge_last, merge_mean, merge_slerp, merge_weighted
from dynammo_core.merging.fisher import comparable
from dynammo_core.merging.operators import merge
from dynammo_core.merging.task_sets import TaskSets
from dynammo_core.merging.task_vectors import WHOLE
from dynammo_core.methods.settings.adapters import DynaMMoSettings
from dynammo_core.models.adapters import AdapterSet
from dynammo_core.support.seeding import seeded_initialisation

State = dict[str, Tensor]
operators = pytest.mark.parametrize("operator", MERGE_OPERATORS)
ORDERED = {"last", "slerp"}  # the order of tasks matters
PRUNED = {"ties", "dare", "breadcrumbs"}


def adapter_state(seed: int, batches: int = 1) -> State:
    """The state of an adapter set whose batch norms have seen something."""
    with seeded_initialisation(seed):
        adapters = AdapterSet((3, 5), alpha=0.1 + seed).train()
        for _ in range(batches):
            for adapter, width in zip(adapters, (3, 5), strict=True):
                adapter(torch.randn(4, width, 6, 6) + seed)
    return {name: tensor.clone() for name, tensor in adapters.state_dict().items()}


def task_sets(states: Sequence[State], density: float = 1.0, scale: float = 1.0) -> TaskSets:
    """Entries weigh as much as they are long: each set brings its own importance, wherever it stands."""
    importance = [comparable({n: t.square() for n, t in state.items() if "running" not in n}) for state in states]
    samples = [1.0 + i for i in range(len(states))]
    return TaskSets(states, adapter_state(99), samples, importance, density, scale)


def merged(operator: str | Sequence[str], given_: TaskSets) -> State:
    with seeded_initialisation("merge"):
        return merge(operator, given_)


def equal(a: State, b: State) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@operators
def test_one_set_merges_to_itself_bit_for_bit_however_much_is_pruned(operator: str) -> None:
    assert equal(merged(operator, task_sets([adapter_state(1)], density=0.1, scale=3.0)), adapter_state(1))


@operators
@pytest.mark.parametrize("copies", [2, 3, 7])
def test_equal_sets_merge_to_themselves(operator: str, copies: int) -> None:
    # With density 1 nothing is pruned, but for the one entry in a hundred that breadcrumbs leave out as an outlier.
    result, state = merged(operator, task_sets([adapter_state(1)] * copies)), adapter_state(1)
    for name, tensor in state.items():
        close = torch.isclose(result[name], tensor, rtol=1e-6, atol=1e-7)
        outliers = int(0.01 * tensor.numel()) if operator == "breadcrumbs" and tensor.dim() > 1 else 0
        assert int((~close).sum()) == outliers


@pytest.mark.parametrize("copies", [1, 2, 3, 7])
def test_equal_sets_have_themselves_as_mean_bit_for_bit(copies: int) -> None:
    for operator in ("mean", "last"):
        assert equal(merged(operator, task_sets([adapter_state(1)] * copies)), adapter_state(1))


@operators
def test_a_merged_set_loads_and_shares_no_memory_with_its_sources(operator: str) -> None:
    sets = [adapter_state(seed) for seed in range(3)]
    given_ = task_sets(sets, density=0.5)
    before = [{name: tensor.clone() for name, tensor in state.items()} for state in (*sets, given_.initial)]
    result = merged(operator, given_)
    assert {name: tensor.dtype for name, tensor in result.items()} == {n: t.dtype for n, t in sets[0].items()}
    AdapterSet((3, 5), alpha=0.5).load_state_dict(result, strict=True)
    for tensor in result.values():
        tensor.fill_(7)
    assert all(map(equal, [*sets, dict(given_.initial)], before))


@pytest.mark.parametrize("operator", sorted(MERGE_OPERATORS.keys() - ORDERED - {"weighted", "dare"}))
@given(order=st.permutations(range(4)))
def test_the_order_of_sets_does_not_matter(operator: str, order: list[int]) -> None:
    sets = [adapter_state(seed) for seed in range(4)]
    expected = merged(operator, task_sets(sets, density=0.5))
    result = merged(operator, task_sets([sets[index] for index in order], density=0.5))
    for name, tensor in expected.items():
        torch.testing.assert_close(result[name], tensor, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("operator", sorted(ORDERED))
def test_where_the_order_matters(operator: str) -> None:
    sets = [adapter_state(seed) for seed in range(3)]
    assert not equal(merged(operator, task_sets(sets)), merged(operator, task_sets(sets[::-1])))


@operators
def test_no_two_operators_are_the_same(operator: str) -> None:
    given_ = task_sets([adapter_state(seed) for seed in range(3)], density=0.3, scale=1.5)
    result = merged(operator, given_)
    others = [merged(other, given_) for other in MERGE_OPERATORS if other != operator]
    assert not any(equal(result, other) for other in others)


@operators
def test_scales_and_batch_norms_are_never_pruned(operator: str) -> None:
    sets = [adapter_state(seed) for seed in range(2)]
    result = merged(operator, task_sets(sets, density=0.1, scale=5.0))
    alphas = [state["0.alpha"].item() for state in sets]
    assert min(alphas) - 1e-6 <= result["0.alpha"].item() <= max(alphas) + 1e-6
    assert (result["0.residual.1.running_var"] > 0).all()


# One operator for each insertion point


@operators
def test_a_list_of_one_name_is_the_name(operator: str) -> None:
    given_ = task_sets([adapter_state(seed) for seed in range(3)], density=0.3, scale=1.5)
    each_by_itself = {**merged(operator, given_.at(0)), **merged(operator, given_.at(1))}
    expected = each_by_itself if operator in WHOLE else merged(operator, given_)
    assert equal(merged([operator, operator], given_), expected)


@operators
@pytest.mark.parametrize("first", ["last", "ties", "dare"])
def test_each_adapter_is_merged_by_its_own_operator(first: str, operator: str) -> None:
    if operator == "dare":  # the only one that draws, and what it would draw after another cannot be told
        return
    given_ = task_sets([adapter_state(seed) for seed in range(3)], density=0.3, scale=1.5)
    result = merged([first, operator], given_)
    assert result.keys() == given_.sets[0].keys()
    for place, name in enumerate((first, operator)):
        alone = merged(name, given_.at(place))
        assert all(torch.equal(result[key], alone[key]) for key in result if key.startswith(f"{place}."))


def test_one_set_merges_to_itself_whatever_the_list() -> None:
    assert equal(merged(["ties", "fisher"], task_sets([adapter_state(1)], density=0.1)), adapter_state(1))


# Averages by hand


def test_mean_by_hand() -> None:
    # (1 + 2 + 6) / 3 = 3. Statistics of means 0, 3, 3 and variances 1: mean 2, variance 1 + (0 + 9 + 9) / 3 - 4 = 3.
    sets = [
        {"w": torch.tensor([w]), "bn.running_mean": torch.tensor([mean]), "bn.running_var": torch.ones(1)}
        for w, mean in ((1.0, 0.0), (2.0, 3.0), (6.0, 3.0))
    ]
    expected = {"w": [3.0], "bn.running_mean": [2.0], "bn.running_var": [3.0]}
    torch.testing.assert_close(merge_mean(TaskSets(sets)), {name: torch.tensor(v) for name, v in expected.items()})


def test_weighted_by_hand() -> None:
    # Weights 1/4 and 3/4. w: 1/4 + 9/4 = 2.5. Means 0 and 4: 3; variances 1: 1 + (9 + 3 * 1) / 4 = 4.
    sets = [
        {"w": torch.tensor([w]), "bn.running_mean": torch.tensor([mean]), "bn.running_var": torch.ones(1)}
        for w, mean in ((1.0, 0.0), (3.0, 4.0))
    ]
    expected = {"w": [2.5], "bn.running_mean": [3.0], "bn.running_var": [4.0]}
    result = merge_weighted(TaskSets(sets, samples=[100, 300]))
    torch.testing.assert_close(result, {name: torch.tensor(v) for name, v in expected.items()})


def test_slerp_by_hand() -> None:
    # Between (2, 0) and (0, 4): half of a right angle, length 3. A scalar has no direction: the mean.
    sets = [{"w": torch.tensor([w]), "alpha": torch.tensor(a)} for w, a in (([2.0, 0.0], 1.0), ([0.0, 4.0], 2.0))]
    result = merge_slerp(TaskSets(sets))
    torch.testing.assert_close(result["w"], torch.full((1, 2), 3 / 2**0.5))
    assert result["alpha"] == 1.5


@pytest.mark.parametrize("other", [[1.0, 0.0], [2.0, 0.0], [-1.0, 0.0], [0.0, 0.0]])
def test_slerp_is_a_line_where_there_is_no_arc(other: list[float]) -> None:
    result = merge_slerp(TaskSets([{"w": torch.tensor([w])} for w in ([1.0, 0.0], other)]))
    torch.testing.assert_close(result["w"], torch.tensor([[(1 + other[0]) / 2, 0.0]]))


@given(seeds=st.lists(st.integers(0, 20), min_size=1, max_size=5), order=st.randoms(use_true_random=False))
def test_mean_does_not_depend_on_the_order_and_is_convex(seeds: list[int], order: Random) -> None:
    sets = [adapter_state(seed) for seed in seeds]
    result = merge_mean(TaskSets(sets))
    torch.testing.assert_close(merge_mean(TaskSets(order.sample(sets, len(sets)))), result, rtol=1e-6, atol=1e-6)
    for name, tensor in result.items():
        stacked = torch.stack([state[name] for state in sets])
        assert (tensor >= stacked.amin(0) - 1e-5).all()
        if not name.endswith("running_var"):  # the spread of the means comes on top
            assert (tensor <= stacked.amax(0) + 1e-5).all()


def test_pooled_variances_hold_the_spread_of_the_means() -> None:
    sets = [adapter_state(seed, batches=30) for seed in (0, 4)]
    name = "0.residual.1.running_var"
    assert (merge_mean(TaskSets(sets))[name] > 1.05 * (sets[0][name] + sets[1][name]) / 2).any()


def test_last_is_the_newest_set_whatever_came_before() -> None:
    sets = [adapter_state(seed) for seed in range(3)]
    assert equal(merge_last(TaskSets(sets)), sets[2])
    assert equal(merge_last(TaskSets([sets[0], sets[2]])), sets[2])


def test_every_operator_can_be_configured_and_nothing_else() -> None:
    for name in MERGE_OPERATORS:
        assert DynaMMoSettings(name="dynammo", merge=name).merge == name
    for wrong in ("median", ("mean", "median")):
        with pytest.raises(ValueError, match=r"unknown merge operator 'median'.* accepted: mean, last"):
            DynaMMoSettings(name="dynammo", merge=wrong)
