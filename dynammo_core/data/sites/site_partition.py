"""The partitioners by which a simulation spreads one data set over many sites, each image at exactly one.

They are our own because flwr-datasets' do not fit: those know one split, so that the test images of a site would not
follow its training images; `DirichletPartitioner` gives up after ten draws if a site stays without images
(100 sites, alpha 0.1, 2,000 images), `IidPartitioner` deals without shuffling; and they take five seconds to import.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dynammo_core.configuration.federation import FederationSettings
from dynammo_core.data.samples import Dataset
from dynammo_core.data.sites.patients import deal_patients, indices_of_sites
from dynammo_core.support.errors import ConfigError, DataError
from dynammo_core.support.seeding import derive_seed

Indices = NDArray[np.int64]
Partitioner = Callable[[Dataset, FederationSettings, np.random.Generator], "SitePartition"]
SiteCounts = Callable[[Indices, int, FederationSettings, np.random.Generator], NDArray[np.int64]]
"""(labels [N], C classes, settings, generator) -> number of images of each class that each site gets, [K, C]."""


@dataclass(frozen=True)
class SitePartition:
    """Ascending indices into the training and the test split, by site; each index belongs to exactly one site.

    `names` are what the data call the sites, if the partition is theirs; otherwise there are none.
    """

    train: tuple[Indices, ...]
    test: tuple[Indices, ...]
    names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.train)


def partition_sites(dataset: Dataset, settings: FederationSettings, seed: int) -> SitePartition:
    """Spread both splits over `settings.sites` sites; the same seed gives the same partition in every process.

    Every site gets at least one training image (a `natural` one what the data say), but may lack classes or tasks.
    Where patients are known, all images of one are at one site (`natural`: where the data say).

    Raises:
        DataError: there are more sites than training images, or `natural` and the data name no sites.
        ConfigError: `natural`, and `federation.sites` is not the number of sites that the data name.
    """
    rng = np.random.default_rng(derive_seed(seed, "partition", settings.partition))
    return PARTITIONERS[settings.partition](dataset, settings, rng)


def patients_by_class(dataset: Dataset, partition: SitePartition, classes: int) -> NDArray[np.int64]:
    """Count each site's patients, of training and test together, who have images of each class: [K, C]."""
    counts = np.zeros((len(partition), classes), dtype=np.int64)
    for site, parts in enumerate(zip(partition.train, partition.test, strict=True)):
        seen = {
            (split.patients[index], int(split.labels[index]))
            for split, held in zip((dataset.train, dataset.test), parts, strict=True)
            for index in held.tolist()
        }
        np.add.at(counts[site], [label for _, label in seen], 1)
    return counts


def _by_class(site_counts: SiteCounts) -> Partitioner:
    """Return a partitioner that deals training images by `site_counts`, and test images per class in proportion.

    If patients are known, each is at one site, and the numbers come as near as that allows.
    """

    def partition(dataset: Dataset, settings: FederationSettings, rng: np.random.Generator) -> SitePartition:
        train, test = dataset.train.labels, dataset.test.labels
        if settings.sites > len(train):
            raise DataError(
                f"federation.sites is {settings.sites}, and there are {len(train)} training images",
                accepted=f"at most {len(train)} sites, so that each has an image",
                remedy="Lower federation.sites, or raise data.train_per_class",
            )
        classes = len(dataset.class_names)
        train_counts = site_counts(train, classes, settings, rng)
        shares = np.where(train_counts.any(axis=0), train_counts, 1).astype(np.float64)
        totals = np.bincount(test, minlength=classes).tolist()
        test_counts = np.stack([apportion(share, total, rng) for share, total in zip(shares.T, totals, strict=True)], 1)
        if dataset.train.patients:
            return _deal_patients(dataset, train_counts, test_counts, rng)
        return SitePartition(_deal(train, train_counts, rng), _deal(test, test_counts, rng))

    return partition


def _iid_counts(
    labels: Indices, classes: int, settings: FederationSettings, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Shuffle all images and deal them in turn, so that sizes differ by one at most."""
    sites = rng.permutation(len(labels)) % settings.sites
    counts = np.zeros((settings.sites, classes), dtype=np.int64)
    np.add.at(counts, (sites, labels), 1)
    return counts


def _dirichlet_counts(
    labels: Indices, classes: int, settings: FederationSettings, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Share each class in proportions drawn from Dirichlet(alpha, ..., alpha) (Yurochkin et al. 2019, 1905.12022).

    A site that got nothing is given one image of the largest class of the site that has the most images.
    """
    alphas = np.full(settings.sites, settings.alpha)
    totals = np.bincount(labels, minlength=classes).tolist()
    counts = np.stack([apportion(rng.dirichlet(alphas), total, rng) for total in totals], axis=1)
    sizes = counts.sum(axis=1)
    for site in np.flatnonzero(sizes == 0).tolist():
        donor = int(sizes.argmax())
        label = int(counts[donor].argmax())
        counts[[donor, site], label] += (-1, 1)
        sizes[[donor, site]] += (-1, 1)
    return counts


def _quantity_counts(
    labels: Indices, classes: int, settings: FederationSettings, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Shuffle all images, so that labels mix alike, and deal them in proportions from Dirichlet(alpha, ..., alpha).

    This is the quantity skew of Li et al. 2022 (2102.02079). A site that got nothing is given an image of the largest.
    """
    sizes = apportion(rng.dirichlet(np.full(settings.sites, settings.alpha)), len(labels), rng)
    for site in np.flatnonzero(sizes == 0).tolist():
        sizes[[int(sizes.argmax()), site]] += (-1, 1)
    counts = np.zeros((settings.sites, classes), dtype=np.int64)
    np.add.at(counts, (np.repeat(np.arange(settings.sites), sizes), rng.permutation(labels)), 1)
    return counts


def _natural(dataset: Dataset, settings: FederationSettings, _: np.random.Generator) -> SitePartition:
    """Return the partition by the data's own sites, in the order of their names."""
    if dataset.train.sites is None or dataset.test.sites is None:
        raise DataError(
            "federation.partition is natural, and the data do not say which site an image belongs to",
            accepted="a manifest with a column site",
            remedy="Add the column, or choose another partition",
        )
    names = tuple(sorted({*dataset.train.sites, *dataset.test.sites}))
    if len(names) != settings.sites:
        raise ConfigError(
            f"federation.sites is {settings.sites}, and the data name {len(names)} sites ({', '.join(names)})",
            accepted=str(len(names)),
            remedy=f"Set federation.sites to {len(names)}",
        )
    train, test = (
        tuple(np.flatnonzero(np.array(split.sites) == name) for name in names)
        for split in (dataset.train, dataset.test)
    )
    return SitePartition(train, test, names)


def apportion(weights: NDArray[np.float64], total: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Share `total` in proportion to `weights` [K] by largest remainders: [K] counts whose sum is `total`.

    Equal remainders are settled by lot: if settled by number, the first sites would win in every class.
    """
    quota = weights / weights.sum() * total
    counts: NDArray[np.int64] = np.floor(quota).astype(np.int64)
    remainder = np.round(quota - counts, 9)
    lucky = np.lexsort((rng.random(len(quota)), -remainder))[: total - counts.sum()]
    counts[lucky] += 1
    return counts


def _deal(labels: Indices, counts: NDArray[np.int64], rng: np.random.Generator) -> tuple[Indices, ...]:
    """Give site k, at random, counts[k, c] of the images of each class c."""
    owner = np.empty(len(labels), dtype=np.int64)
    for label in range(counts.shape[1]):
        members = np.flatnonzero(labels == label)
        owner[rng.permutation(members)] = np.repeat(np.arange(len(counts)), counts[:, label])
    by_site = np.argsort(owner, kind="stable")
    return tuple(np.split(by_site, np.cumsum(np.bincount(owner, minlength=len(counts)))[:-1]))


def _deal_patients(
    dataset: Dataset, train_counts: NDArray[np.int64], test_counts: NDArray[np.int64], rng: np.random.Generator
) -> SitePartition:
    train, test, count = dataset.train, dataset.test, len(train_counts)
    of_train = deal_patients(train.labels, train.patients, train_counts, rng)
    of_all = deal_patients(test.labels, test.patient_ids, test_counts, rng, of_train)
    return SitePartition(
        indices_of_sites(train.patients, of_train, count), indices_of_sites(test.patient_ids, of_all, count)
    )


PARTITIONERS: Mapping[str, Partitioner] = {
    "iid": _by_class(_iid_counts),
    "dirichlet": _by_class(_dirichlet_counts),
    "quantity": _by_class(_quantity_counts),
    "natural": _natural,
}
