from __future__ import annotations

import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynammo_core.configuration.federation import FederationSettings
from dynammo_core.data.samples import Dataset, Split
from dynammo_core.data.sites.site_partition import PARTITIONERS, apportion, partition_sites
from dynammo_core.data.sources import ArraySource
from dynammo_core.support.errors import ConfigError, DataError


def split(labels: list[int], sites: tuple[str, ...] | None = None) -> Split:
    images = np.zeros((len(labels), 1, 1), dtype=np.uint8)
    return Split(ArraySource(images), np.array(labels, dtype=np.int64), ("",) * len(labels), sites)


def dataset(train: list[int], test: list[int], classes: int = 6) -> Dataset:
    return Dataset(tuple(str(i) for i in range(classes)), split(train), split(test))


def counts(labels: np.ndarray, parts: tuple[np.ndarray, ...], classes: int) -> np.ndarray:
    """[K, C]: images of each class at each site."""
    return np.stack([np.bincount(labels[part], minlength=classes) for part in parts])


def federation(sites: int, partition: str = "iid", alpha: float = 0.5) -> FederationSettings:
    return FederationSettings(sites=sites, partition=partition, alpha=alpha)


labels = st.lists(st.integers(0, 5), min_size=1, max_size=120)


@given(
    labels,
    labels,
    st.sampled_from(["iid", "dirichlet", "quantity"]),
    st.floats(1e-9, 1e9),
    st.integers(1, 120),
    st.integers(0, 2**70),
)
def test_every_image_is_at_exactly_one_site_and_test_follows_train(
    train: list[int], test: list[int], partition: str, alpha: float, sites: int, seed: int
) -> None:
    data = dataset(train, test)
    chosen = federation(min(sites, len(train)), partition, alpha)
    parts = partition_sites(data, chosen, seed)
    assert len(parts) == len(parts.train) == len(parts.test) == chosen.sites
    for ours, whole in ((parts.train, data.train), (parts.test, data.test)):
        assert sorted(np.concatenate(ours).tolist()) == list(range(len(whole.labels)))
        assert all((np.diff(part) > 0).all() for part in ours)
    assert all(len(part) for part in parts.train)
    trained, tested = counts(data.train.labels, parts.train, 6), counts(data.test.labels, parts.test, 6)
    for label in set(train):
        # largest remainders differ from the exact share by less than one image
        share = trained[:, label] / train.count(label) * test.count(label)
        assert (np.abs(tested[:, label] - share) < 1).all()
        assert (tested[trained[:, label] == 0, label] == 0).all()


@given(labels, st.integers(1, 120), st.integers(0, 99))
def test_iid_sites_differ_by_one_training_image_at_most(train: list[int], sites: int, seed: int) -> None:
    parts = partition_sites(dataset(train, [0]), federation(min(sites, len(train))), seed)
    sizes = [len(part) for part in parts.train]
    assert max(sizes) - min(sizes) <= 1


def test_iid_mixes_the_classes() -> None:
    data = dataset([0] * 500 + [1] * 500, [0] * 10 + [1] * 10)
    parts = partition_sites(data, federation(2), 3)
    # 500 of 1000 without replacement: hypergeometric, mean 250, standard deviation sqrt(500 / 4 * 500 / 999) = 7.9
    assert abs(counts(data.train.labels, parts.train, 2)[0, 0] - 250) < 40


def test_dirichlet_shares_have_the_variance_of_the_distribution() -> None:
    classes, each, sites = 400, 500, 5
    train = np.repeat(np.arange(classes), each).tolist()
    for alpha in (0.1, 0.5, 10.0):
        data = dataset(train, list(range(classes)), classes)
        shares = counts(
            data.train.labels, partition_sites(data, federation(sites, "dirichlet", alpha), 1).train, classes
        )
        # a component of Dirichlet(alpha, ..., alpha) has variance (1/K)(1 - 1/K) / (K alpha + 1)
        expected = (1 / sites) * (1 - 1 / sites) / (sites * alpha + 1)
        assert np.var(shares / each) == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("alpha", [1.0, 10.0])
def test_quantity_shares_of_all_images_have_the_variance_of_the_distribution(alpha: float) -> None:
    sites, images = 50, 10_000
    data = dataset([0] * images, [0], 1)
    drawn = [partition_sites(data, federation(sites, "quantity", alpha), seed).train for seed in range(40)]
    shares = np.array([[len(part) / images for part in parts] for parts in drawn])
    # as above; a gamma's kurtosis is 3 + 6 / alpha, so 2,000 shares tell the variance to sqrt((2 + 6 / alpha) / 2000),
    # which is 6 % at alpha 1
    expected = (1 / sites) * (1 - 1 / sites) / (sites * alpha + 1)
    assert np.var(shares) == pytest.approx(expected, rel=0.2)


def test_quantity_skews_sizes_and_not_labels() -> None:
    data = dataset([0] * 6000 + [1] * 2000, [0] * 600 + [1] * 200, 2)
    parts = partition_sites(data, federation(5, "quantity", 0.5), 1)
    for labels, part, tolerated in ((data.train.labels, parts.train, 5.0), (data.test.labels, parts.test, 3.0)):
        held = counts(labels, part, 2)
        sizes = held.sum(axis=1)
        assert sizes.max() > 3 * sizes.min()
        # three quarters are of class 0: so many standard deviations of a draw of that size
        assert (np.abs(held[:, 0] - 0.75 * sizes) < tolerated * np.sqrt(sizes * 0.75 * 0.25)).all()


def test_a_thousand_sites_get_an_image_each_at_any_skew() -> None:
    data = dataset(np.repeat(np.arange(10), 110).tolist(), np.repeat(np.arange(10), 50).tolist(), 10)
    for partition, alpha in product(("dirichlet", "quantity"), (0.01, 0.5, 100)):
        parts = partition_sites(data, federation(1000, partition, alpha), 1)
        assert min(len(part) for part in parts.train) == 1


def test_the_seed_decides() -> None:
    data = dataset(list(range(6)) * 20, list(range(6)) * 5)
    for partition in ("iid", "dirichlet", "quantity"):
        one, same, other = (partition_sites(data, federation(4, partition), seed) for seed in (1, 1, 2))
        assert all(np.array_equal(a, b) for a, b in zip(one.train + one.test, same.train + same.test, strict=True))
        assert not all(np.array_equal(a, b) for a, b in zip(one.train, other.train, strict=True))


@pytest.mark.parametrize("partition", ["iid", "dirichlet", "quantity"])
def test_which_images_of_a_class_a_site_gets_is_drawn(partition: str) -> None:
    parts = partition_sites(dataset([0] * 100, [0] * 100, 1), federation(2, partition, 1e6), 1)
    # two halves of one class; as blocks, one site would hold 0..49
    for part in (*parts.train, *parts.test):
        assert 45 <= len(part) <= 55
        assert part[0] < 25 and part[-1] > 75


def test_another_process_draws_the_same() -> None:
    script = """
import numpy as np
from dynammo_core.data.samples import Dataset, Split
from dynammo_core.data.sites.site_partition import partition_sites
from dynammo_core.data.sources import ArraySource
from dynammo_core.configuration.federation import FederationSettings
labels = np.arange(60) % 6
split = Split(ArraySource(np.zeros((60, 1, 1), np.uint8)), labels, ("",) * 60)
parts = partition_sites(Dataset(tuple("012345"), split, split), FederationSettings(sites=4, partition="dirichlet"), 1)
print([part.tolist() for part in parts.train + parts.test])
"""
    labels = [i % 6 for i in range(60)]
    here = partition_sites(dataset(labels, labels), federation(4, "dirichlet"), 1)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONHASHSEED": "7"}
    there = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert there.stdout.strip() == str([part.tolist() for part in here.train + here.test])


def test_more_sites_than_training_images_are_refused() -> None:
    with pytest.raises(DataError, match=r"sites is 4, and there are 3 training images.*Accepted: at most 3.*Lower"):
        partition_sites(dataset([0, 1, 2], [0, 1, 2]), federation(4, "dirichlet"), 1)


def natural(train: tuple[str, ...] | None, test: tuple[str, ...] | None) -> Dataset:
    return Dataset(("x",), split([0] * 4, train), split([0] * 3, test))


def test_natural_sites_are_the_datas_own_in_the_order_of_their_names() -> None:
    parts = partition_sites(natural(("s", "n", "s", "w"), ("n", "n", "s")), federation(3, "natural"), 1)
    assert [part.tolist() for part in parts.train] == [[1], [0, 2], [3]]
    assert [part.tolist() for part in parts.test] == [[0, 1], [2], []]
    assert parts.names == ("n", "s", "w")


def test_natural_needs_the_datas_sites_and_their_number() -> None:
    with pytest.raises(DataError, match=r"do not say which site.*column site"):
        partition_sites(natural(None, None), federation(3, "natural"), 1)
    with pytest.raises(
        ConfigError, match=r"sites is 2, and the data name 3 sites \(n, s, w\).*Set federation.sites to 3"
    ):
        partition_sites(natural(("s", "n", "s", "w"), ("n", "n", "s")), federation(2, "natural"), 1)


def test_the_table_is_what_the_settings_accept() -> None:
    accepted = FederationSettings.model_json_schema()["properties"]["partition"]["enum"]
    assert sorted(PARTITIONERS) == sorted(accepted)


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50).filter(lambda w: sum(w) > 1e-3), st.integers(0, 1000))
def test_apportioning_is_exact_in_sum_and_close_in_each(weights: list[float], total: int) -> None:
    share = np.array(weights) / sum(weights) * total
    result = apportion(np.array(weights), total, np.random.default_rng(0))
    assert result.sum() == total
    assert (np.abs(result - share) < 1 + 1e-6).all()


def test_equal_claims_are_settled_by_lot() -> None:
    rng = np.random.default_rng(0)
    wins = sum(apportion(np.ones(10), 3, rng) for _ in range(500))
    # each of ten wins with probability 0.3: mean 150, standard deviation sqrt(500 * 0.3 * 0.7) = 10.2
    assert wins.min() > 100 and wins.max() < 200
