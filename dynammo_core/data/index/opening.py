"""From the section `data` of a configuration to the images of a run, by index: none is decoded."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from dynammo_core.configuration.settings import DataSettings
from dynammo_core.data.datasets import DATASETS, LABELS
from dynammo_core.data.samples import Dataset, Split
from dynammo_core.data.sources import read_as, select
from dynammo_core.support.errors import ConfigError, DataError
from dynammo_core.support.seeding import derive_seed


@lru_cache(maxsize=4)
def open_dataset(settings: DataSettings, seed: int) -> Dataset:
    """Index the data set and keep the images that the settings ask for; nothing is decoded.

    With `validation_per_class` that many training images of each class become the test split, and the data set's own
    test images are not touched. Then `train_per_class` and `test_per_class` images are kept, drawn by the seed: fewer
    are a subset of more, and a class that has fewer keeps all. The last few results stay in memory.

    Raises:
        ConfigError: `data.classes` differs from the classes of a data set whose classes are fixed.
        DataError: images are missing or bad, or validation would take all training images of a class.
    """
    try:
        dataset = DATASETS[settings.dataset](settings)
    except OSError as error:
        raise DataError(
            f"the data of {settings.dataset} cannot be read: {error}", remedy="Permit reading it, or correct data.root"
        ) from error
    if settings.classes not in (None, dataset.class_names):
        raise ConfigError(
            f"data.classes is {settings.classes}, and the classes of {settings.dataset} are fixed",
            accepted=str(dataset.class_names),
            remedy="Leave data.classes out",
        )
    dataset = replace(
        dataset, train=read_as(dataset.train, settings.reading), test=read_as(dataset.test, settings.reading)
    )
    if settings.validation_per_class:
        dataset = _validate_on_training(dataset, settings.validation_per_class, seed)
    return replace(
        dataset,
        train=_subsample(dataset.train, settings.train_per_class, seed, "train"),
        test=_subsample(dataset.test, settings.test_per_class, seed, "test"),
    )


def open_own(settings: DataSettings, seed: int) -> Dataset:
    """Index a site's own data set: it may lack any class of the registry, and hold others, which are numbered last.

    Without a registry its classes are those that its own labels name. All else is as in `open_dataset`.
    """
    if settings.dataset in LABELS:
        known = settings.classes or ()
        found = LABELS[settings.dataset](settings)
        settings = settings.model_copy(update={"classes": (*known, *(name for name in found if name not in known))})
    return open_dataset(settings, seed)


def _validate_on_training(dataset: Dataset, per_class: int, seed: int) -> Dataset:
    labels = dataset.train.labels
    for label, name in enumerate(dataset.class_names):
        if 0 < (count := int((labels == label).sum())) <= per_class:
            raise DataError(
                f"the class {name!r} has {count} training images, and data.validation_per_class takes {per_class}",
                accepted=f"at most {count - 1}",
                remedy="Lower data.validation_per_class",
            )
    chosen = _drawn_per_class(labels, per_class, seed, "validation")
    rest = np.setdiff1d(np.arange(len(labels)), chosen)
    return replace(dataset, train=select(dataset.train, rest), test=select(dataset.train, chosen))


def _subsample(split: Split, per_class: int | None, seed: int, purpose: str) -> Split:
    return split if per_class is None else select(split, _drawn_per_class(split.labels, per_class, seed, purpose))


def _drawn_per_class(labels: NDArray[np.int64], per_class: int, seed: int, purpose: str) -> NDArray[np.int64]:
    """Draw the indices, ascending, of `per_class` images of each class, or of all if it has fewer."""
    drawn = []
    for label in np.unique(labels).tolist():
        members = np.flatnonzero(labels == label)
        order = np.random.default_rng(derive_seed(seed, "subsample", purpose, label)).permutation(len(members))
        drawn.append(members[order[:per_class]])
    return np.sort(np.concatenate(drawn))
