from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynammo_core.configuration.federation import FederationSettings
from dynammo_core.data.samples import Dataset, Split
from dynammo_core.data.sites.patients import deal_patients
from dynammo_core.data.sites.site_partition import SitePartition, partition_sites, patients_by_class
from dynammo_core.data.sources import ArraySource
from dynammo_core.support.errors import DataError

Images = list[tuple[int, int]]
images = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 40)), min_size=1, max_size=150)


def split(drawn: Images) -> Split:
    pixels = np.zeros((len(drawn), 1, 1), dtype=np.uint8)
    labels = np.array([label for label, _ in drawn], dtype=np.int64)
    return Split(ArraySource(pixels), labels, ("",) * len(drawn), patients=tuple(f"p{patient}" for _, patient in drawn))


def data(train: Images, test: Images) -> Dataset:
    return Dataset(tuple("abcd"), split(train), split(test))


@settings(max_examples=100)
@given(images, images, st.sampled_from(["iid", "dirichlet", "quantity"]), st.integers(1, 40), st.integers(0, 99))
def test_a_patient_is_at_one_site_in_training_and_test(
    train: Images, test: Images, partition: str, sites: int, seed: int
) -> None:
    known = len({patient for _, patient in train})
    dataset = data(train, test)
    settings = FederationSettings(sites=min(sites, known), partition=partition, alpha=0.5)
    parts = partition_sites(dataset, settings, seed)
    at: dict[str, set[int]] = {}
    for whole, ours in ((dataset.train, parts.train), (dataset.test, parts.test)):
        assert sorted(np.concatenate(ours).tolist()) == list(range(len(whole.labels)))
        assert all((np.diff(part) > 0).all() for part in ours)
        for site, part in enumerate(ours):
            for index in part.tolist():
                at.setdefault(whole.patients[index], set()).add(site)
    assert all(len(places) == 1 for places in at.values())
    assert all(len(part) for part in parts.train)


@pytest.mark.parametrize(("classes_of_a_patient", "share"), [(1, 0.02), (4, 0.25)])
def test_the_numbers_come_near_to_those_wanted(classes_of_a_patient: int, share: float) -> None:
    rng = np.random.default_rng(0)
    drawn = [
        (int(patient + rng.integers(classes_of_a_patient)) % 4, patient)
        for patient in range(400)
        for _ in range(int(rng.integers(1, 5)))
    ]
    alone = [(label, number) for number, (label, _) in enumerate(drawn)]
    labels = np.array([label for label, _ in drawn])
    for partition in ("iid", "dirichlet"):
        federation = FederationSettings(sites=4, partition=partition, alpha=0.5)
        free, bound = (
            np.array(
                [
                    np.bincount(labels[part], minlength=4)
                    for part in partition_sites(data(one, one), federation, 3).train
                ]
            )
            for one in (alone, drawn)
        )
        # Lesions of one class lie almost as freely as images; patients with images of any class cannot
        assert np.abs(free - bound).sum() / 2 <= share * len(drawn)


def test_equal_patients_are_dealt_by_lot_and_the_seed_decides() -> None:
    drawn = [(0, patient) for patient in range(100)]
    dataset = data(drawn, drawn)
    one, same, other = (partition_sites(dataset, FederationSettings(sites=2), seed).train[0] for seed in (1, 1, 2))
    assert one.tolist() == same.tolist() != other.tolist()
    assert one[0] < 25 and one[-1] > 75


def test_more_sites_than_patients_are_refused() -> None:
    with pytest.raises(DataError, match=r"sites is 3, and .* of 2 patients.*Accepted: at most 2 sites.*Lower"):
        partition_sites(data([(0, 1), (0, 1), (0, 2)], [(0, 5)]), FederationSettings(sites=3), 1)


def test_who_has_a_site_keeps_it() -> None:
    labels, patients = np.zeros(4, dtype=np.int64), ["a", "b", "a", "c"]
    sites = deal_patients(labels, patients, np.array([[4], [0]]), np.random.default_rng(0), {"a": 1})
    assert sites == {"a": 1, "b": 0, "c": 0}


def test_patients_are_counted_by_site_and_class() -> None:
    dataset = data([(0, 1), (0, 1), (1, 1), (1, 2), (3, 3)], [(0, 1), (1, 4)])
    partition = SitePartition((np.array([0, 1, 2]), np.array([3, 4])), (np.array([0]), np.array([1])))
    assert patients_by_class(dataset, partition, 4).tolist() == [[1, 1, 0, 0], [0, 2, 0, 1]]
