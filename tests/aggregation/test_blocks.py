"""What all aggregators of the table share: blocks, class awareness, batch norm, order, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dynammo_core.aggregation import AGGREGATORS
from dynammo_core.aggregation.class_aware import Update, class_aware_mean
from dynammo_core.configuration.federation import MORE_THAN_TWICE_THE_LIARS, FederationSettings
from dynammo_core.models.heads import OTHERS
from dynammo_core.support.errors import ConfigError
from dynammo_core.support.yaml_files import validate

CLASSES = 4
ROWS = (2, 0, OTHERS)
HEAD = {"head.weight": ROWS, "head.bias": ROWS}
MEAN, VARIANCE = "bn.running_mean", "bn.running_var"
ROBUST = sorted(set(AGGREGATORS) - {"mean", "fedavg"})
every_robust = pytest.mark.parametrize("name", ROBUST)
mixing_or_not = pytest.mark.parametrize("mixing", [False, True])
counts_of_a_site = st.lists(st.integers(0, 30), min_size=CLASSES, max_size=CLASSES).filter(any)


def tensors(seed: int) -> dict[str, Tensor]:
    """One of every kind of tensor that travels and is not summed."""
    rng = np.random.default_rng(seed)
    shapes = {"head.weight": (3, 2), "head.bias": (3,), "conv.weight": (2, 1, 3, 3), "alpha": ()}
    made = {name: torch.tensor(rng.normal(size=shape), dtype=torch.float32) for name, shape in shapes.items()}
    made[MEAN] = torch.tensor(rng.normal(size=2), dtype=torch.float32)
    made[VARIANCE] = torch.tensor(rng.uniform(0.1, 2, 2), dtype=torch.float32)
    return made


def merge(
    name: str, updates: Sequence[Update], current: dict[str, Tensor], *, liars: int = 1, mixing: bool = False
) -> dict[str, Tensor]:
    return AGGREGATORS[name](liars, mixing)(updates, HEAD, current, ())


def federation(**given: object) -> FederationSettings:
    return validate(FederationSettings, given, "federation")


@every_robust
@mixing_or_not
def test_one_site_is_the_identity_but_for_rows_that_it_does_not_hold(name: str, mixing: bool) -> None:
    own, current = tensors(1), tensors(2)
    merged = merge(name, [Update(own, [5, 0, 0, 0])], current, mixing=mixing)
    assert list(merged) == list(own)
    for tensor in ("conv.weight", "alpha", MEAN, VARIANCE):
        torch.testing.assert_close(merged[tensor], own[tensor])
    for tensor in HEAD:  # it holds class 0, the second row; nobody holds class 2 or others
        torch.testing.assert_close(merged[tensor][1], own[tensor][1])
        assert torch.equal(merged[tensor][[0, 2]], current[tensor][[0, 2]])


@every_robust
@mixing_or_not
@given(counts=st.lists(counts_of_a_site, min_size=1, max_size=5), lie=st.floats(-1e6, 1e6))
def test_a_row_hears_only_the_sites_that_hold_its_class(
    name: str, mixing: bool, counts: list[list[int]], lie: float
) -> None:
    """A site without class 2 may say of its row what it will: not a bit changes. Nor for the row of class 0."""
    current = tensors(99)
    sites = [Update(tensors(site), own) for site, own in enumerate(counts)]
    lying = []
    for site in sites:
        told = {tensor: value.clone() for tensor, value in site.weights.items()}
        for row, label in ((0, 2), (1, 0)):
            if not site.class_counts[label]:
                told["head.weight"][row] = lie
                told["head.bias"][row] = lie
        lying.append(Update(told, site.class_counts))
    true, told = merge(name, sites, current, mixing=mixing), merge(name, lying, current, mixing=mixing)
    for tensor in HEAD:
        assert torch.equal(true[tensor][:2], told[tensor][:2])


def test_rows_by_hand() -> None:
    # Row of class 2: site a does not hold it, the others say 1, 5 and 9 with 10 samples each. Row of class 0: all say.
    counts = ([10, 0, 0, 0], [10, 0, 10, 0], [10, 0, 10, 0], [10, 0, 10, 0])
    biases = ([-70, 1], [1, 2], [5, 3], [9, 1000])
    sites = [
        Update({"head.bias": torch.tensor([*map(float, own), 0.0])}, held)
        for own, held in zip(biases, counts, strict=True)
    ]
    current = {"head.bias": torch.tensor([100.0, 100.0, -3.0])}
    rows = {"head.bias": ROWS}
    # The median of 1, 2, 3, 1000 is 2.5, and so is the mean without the lowest and the highest; nobody holds others.
    for name in ("median", "trimmed_mean"):
        merged = AGGREGATORS[name](1, False)(sites, rows, current, ())
        assert torch.equal(merged["head.bias"], torch.tensor([5.0, 2.5, -3.0]))


def test_norms_are_of_updates_not_of_weights() -> None:
    # The server has 1000; the updates are 1, 2 and -500, of which the last is clipped to -2: 1000 + 1 / 3.
    sites = [Update({"w": torch.tensor([1000.0 + step])}, [10]) for step in (1, 2, -500)]
    merged = AGGREGATORS["norm_clipping"](1, False)(sites, {}, {"w": torch.tensor([1000.0])}, ())
    torch.testing.assert_close(merged, {"w": torch.tensor([1000 + 1 / 3])})


def test_weights_and_bias_of_a_row_are_judged_together() -> None:
    # By weights the second site has the lowest score, see test_krum.py; by biases alone it would be one of the 0.1.
    points = ((0, 0.0), (1, 0.5), (2.5, 0.1), (4.5, 0.1), (100, 0.1))
    sites = [Update({"h.weight": torch.tensor([[w]]).float(), "h.bias": torch.tensor([b])}, [9]) for w, b in points]
    current = {"h.weight": torch.zeros(1, 1), "h.bias": torch.zeros(1)}
    merged = AGGREGATORS["krum"](1, False)(sites, {"h.weight": (0,), "h.bias": (0,)}, current, ())
    assert merged == {"h.weight": torch.tensor([[1.0]]), "h.bias": torch.tensor([0.5])}


def test_batch_norm_by_hand() -> None:
    # The median of the means 0, 2, 10 is 2. About it the sites see variances 1 + 4, 1 and 1 + 64: the median is 5.
    # The pooled mean 4 and variance 1 + (16 + 4 + 36) / 3 = 19.7 would be the third site's doing.
    sites = [Update({MEAN: torch.tensor([mean]), VARIANCE: torch.ones(1)}, [10]) for mean in (0.0, 2.0, 10.0)]
    current = {MEAN: torch.tensor([0.5]), VARIANCE: torch.tensor([3.0])}
    merged = AGGREGATORS["median"](1, False)(sites, {}, current, ())
    assert merged == {MEAN: torch.tensor([2.0]), VARIANCE: torch.tensor([5.0])}


def clipped_variance(server: float, mean: float, *variances: float) -> float:
    """What becomes of the variances of sites with one mean, where the server's mean is 0."""
    sites = [Update({MEAN: torch.tensor([mean]), VARIANCE: torch.tensor([own])}, [10]) for own in variances]
    current = {MEAN: torch.zeros(1), VARIANCE: torch.tensor([server])}
    return float(AGGREGATORS["norm_clipping"](1, False)(sites, {}, current, ())[VARIANCE])


def test_a_negative_variance_counts_as_zero() -> None:
    # Updates of the server's 3: to 0, 9 and 10, that is -3, 6 and 7, the last clipped to 6.
    assert clipped_variance(3.0, 0.0, -1.0, 9.0, 10.0) == pytest.approx(3 + (-3 + 6 + 6) / 3)


def test_the_servers_variance_too_is_about_the_merged_mean() -> None:
    # The mean is now 2, about which the server's variance is 1 + 4. Updates: -4, -2 and 7, the last clipped to 4.
    assert clipped_variance(1.0, 2.0, 1.0, 3.0, 12.0) == pytest.approx(5 + (-4 - 2 + 4) / 3)


def test_with_equal_sites_the_statistics_are_those_of_the_mean() -> None:
    # Two sites on either side of the mean see the same variance about it: pooling and the median agree.
    sites = [Update({MEAN: torch.tensor([mean]), VARIANCE: torch.ones(1)}, [10]) for mean in (0.0, 2.0)]
    current = {MEAN: torch.zeros(1), VARIANCE: torch.ones(1)}
    assert AGGREGATORS["median"](1, False)(sites, {}, current, ()) == class_aware_mean(sites, {}, current)


@every_robust
@mixing_or_not
@given(data=st.data(), seed=st.integers(0, 99))
def test_no_lie_makes_a_variance_negative_or_a_number_infinite(
    name: str, mixing: bool, data: st.DataObject, seed: int
) -> None:
    lies = st.floats(-(2.0**127), 2.0**127, width=32)
    sites = [Update(tensors(seed + site), [3, 4, 5, 6]) for site in range(5)]
    told = {tensor: torch.full_like(value, data.draw(lies, label=tensor)) for tensor, value in sites[0].weights.items()}
    merged = merge(name, [Update(told, [10**9] * CLASSES), *sites[1:]], tensors(99), mixing=mixing)
    assert (merged[VARIANCE] >= 0).all()
    assert all(bool(torch.isfinite(tensor).all()) for tensor in merged.values())


@every_robust
@mixing_or_not
@given(counts=st.lists(counts_of_a_site, min_size=1, max_size=6), order=st.randoms(use_true_random=False))
def test_the_order_of_sites_does_not_matter(name: str, mixing: bool, counts: list[list[int]], order: Random) -> None:
    sites, current = [Update(tensors(site), own) for site, own in enumerate(counts)], tensors(99)
    shuffled = order.sample(sites, len(sites))
    torch.testing.assert_close(
        merge(name, shuffled, current, mixing=mixing), merge(name, sites, current, mixing=mixing), rtol=1e-5, atol=1e-5
    )


@every_robust
@mixing_or_not
def test_an_absurdly_long_update_is_worth_no_more_than_a_usual_one(name: str, mixing: bool) -> None:
    current = tensors(99)
    sites = [Update(tensors(site), [9, 9, 9, 9]) for site in range(5)]
    far = {tensor: own + 1000 * (sites[0].weights[tensor] - own) for tensor, own in current.items()}
    merged = merge(name, [Update(far, [9, 9, 9, 9]), *sites[1:]], current, mixing=mixing)
    longest = max(float((site.weights["conv.weight"] - current["conv.weight"]).norm()) for site in sites)
    assert (merged["conv.weight"] - current["conv.weight"]).norm() <= longest
    alone = class_aware_mean([Update(far, [9, 9, 9, 9]), *sites[1:]], HEAD, current)
    assert (alone["conv.weight"] - current["conv.weight"]).norm() > 10 * longest


@every_robust
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_types_stay(name: str, dtype: torch.dtype) -> None:
    sites = [Update({k: v.to(dtype) for k, v in tensors(site).items()}, [1, 2, 3, 4]) for site in range(5)]
    merged = merge(name, sites, {k: v.to(dtype) for k, v in tensors(9).items()}, mixing=True)
    assert {tensor.dtype for tensor in merged.values()} == {dtype}


@every_robust
def test_sums_are_refused(name: str) -> None:
    gram = {"head.gram": torch.eye(2)}
    with pytest.raises(
        ConfigError, match=r"federation\.aggregator: 'head\.gram' is a sum over samples.*Accepted: mean"
    ):
        AGGREGATORS[name](1, False)([Update(gram, [1])], {}, gram, {"head.gram"})


def test_the_mean_is_the_class_aware_one() -> None:
    assert AGGREGATORS["mean"](1, True) is class_aware_mean


# --- the configuration


def test_every_robust_aggregator_says_how_many_sites_it_needs() -> None:
    assert set(MORE_THAN_TWICE_THE_LIARS) == set(ROBUST)


@pytest.mark.parametrize(("name", "liars", "fewest"), [("median", 2, 5), ("trimmed_mean", 1, 3), ("krum", 2, 7)])
def test_too_many_liars_are_refused_with_the_number_that_would_do(name: str, liars: int, fewest: int) -> None:
    assert federation(sites=fewest, aggregator=name, liars=liars).liars == liars
    said = f"liars: {name} with .* needs at least {fewest} sites that train .*but there are {fewest - 1}"
    with pytest.raises(ConfigError, match=said):
        federation(sites=fewest - 1, aggregator=name, liars=liars)


def test_sites_that_only_evaluate_do_not_count() -> None:
    named = {"site_names": ["a", "b", "c", "d", "e"], "aggregator": "krum"}
    assert federation(**named).sites == 5
    with pytest.raises(ConfigError, match="but there are 4"):
        federation(**named, evaluate_only=["e"])


def test_the_mean_is_not_asked_how_many_lie() -> None:
    assert federation(sites=1, liars=9).aggregator == "mean"
