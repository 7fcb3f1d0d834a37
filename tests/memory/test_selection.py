from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from dynammo_core.configuration.settings import MemorySettings
from dynammo_core.memory.selection import SELECTIONS, Selection, closest_to_mean, herding, random_choice
from dynammo_core.support.seeding import seeded_generator

operators = pytest.mark.parametrize("select", SELECTIONS.values(), ids=list(SELECTIONS))
sizes = st.integers(1, 12)
seeds = st.integers(0, 2**16)


def features_of(count: int, seed: int, width: int = 5) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(0.5, 1, (count, width))).float()


def choose(select: Selection, features: Tensor, count: int, seed: int = 0) -> list[int]:
    return select(features, count, seeded_generator(seed)).tolist()


def unit(features: Tensor) -> NDArray[np.float64]:
    rows = features.double().numpy()
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@given(size=sizes, count=st.integers(0, 15), seed=seeds)
def test_herding_is_the_greedy_definition(size: int, count: int, seed: int) -> None:
    """Algorithm 4 of iCaRL as it is printed: p_k = argmin ||mu - (phi(x) + sum of the chosen) / k||, none twice."""
    features = features_of(size, seed)
    rows, chosen = unit(features), choose(herding, features, count)
    assert len(set(chosen)) == min(count, size)
    for place, index in enumerate(chosen):
        free = set(range(size)) - set(chosen[:place])
        away = {one: np.linalg.norm(rows.mean(0) - rows[[*chosen[:place], one]].mean(0)) for one in free}
        assert away[index] <= min(away.values()) + 1e-12  # of equally good ones rounding takes any


def test_herding_differs_from_closeness_by_hand() -> None:
    # Unit vectors at 0, 0 and 90 degrees have the mean (2/3, 1/3). All methods begin with the first. Then a second at
    # 0 degrees keeps the running mean at (1, 0), at a distance of 0.47; the one at 90 degrees moves it to (1/2, 1/2),
    # 0.24 away: herding takes it. By itself it is the farthest, 0.94 against 0.47.
    features = torch.tensor([[1.0, 0], [3, 0], [0, 2]])
    assert choose(herding, features, 3) == [0, 2, 1]
    assert choose(closest_to_mean, features, 3) == [0, 1, 2]


@given(size=sizes, seed=seeds)
def test_closest_to_mean_sorts_by_distance(size: int, seed: int) -> None:
    features = features_of(size, seed)
    rows = unit(features)
    chosen = choose(closest_to_mean, features, size)
    assert sorted(chosen) == list(range(size))
    assert (np.diff(np.linalg.norm(rows - rows.mean(0), axis=1)[chosen]) >= -1e-12).all()


@operators
@given(size=sizes, count=st.integers(0, 15), seed=seeds)
def test_fewer_are_the_best_of_more_and_none_comes_twice(select: Selection, size: int, count: int, seed: int) -> None:
    features = features_of(size, seed)
    ranking = choose(select, features, size, seed)
    assert sorted(ranking) == list(range(size))
    assert choose(select, features, count, seed) == ranking[:count]


@operators
def test_equal_samples_are_chosen_once_each(select: Selection) -> None:
    assert sorted(choose(select, torch.ones(4, 3), 4)) == [0, 1, 2, 3]


@pytest.mark.parametrize("select", [herding, closest_to_mean])
def test_only_the_direction_of_features_counts(select: Selection) -> None:
    features = features_of(9, seed=3)
    scaled = features * 2.0 ** torch.arange(9).unsqueeze(1)  # powers of two: no bit of a direction changes
    assert choose(select, scaled, 9) == choose(select, features, 9)


def test_random_choice_depends_on_the_seed_alone() -> None:
    chosen = choose(random_choice, features_of(50, seed=0), 10, seed=4)
    assert chosen == choose(random_choice, features_of(50, seed=1), 10, seed=4)
    assert chosen != choose(random_choice, features_of(50, seed=0), 10, seed=5)


def test_random_choice_is_uniform() -> None:
    # 1000 draws of 2 in 5: each index 400 times, standard deviation sqrt(1000 * 0.4 * 0.6) = 15.5; five of them.
    drawn = [index for seed in range(1000) for index in choose(random_choice, torch.zeros(5, 1), 2, seed)]
    assert np.bincount(drawn) == pytest.approx(np.full(5, 400), abs=78)


def test_every_operator_can_be_configured() -> None:
    for name in SELECTIONS:
        assert MemorySettings(selection=name).selection == name  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'herding', 'random' or 'closest_to_mean'"):
        MemorySettings(selection="best")  # type: ignore[arg-type]
