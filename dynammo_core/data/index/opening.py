"""From the section `data` of a configuration to the images of a run, by index: none is decoded."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np

from dynammo_core.configuration.settings import DataSettings
from dynammo_core.data.datasets import DATASETS, LABELS
from dynammo_core.data.index.sides import draw_groups_per_class, draw_per_class
from dynammo_core.data.samples import Dataset, Split
from dynammo_core.data.sources import read_as, select
from dynammo_core.support.errors import ConfigError, DataError

FEWEST_LEFT = 2
"""Training images of a class that validation leaves: one alone has no batch statistics."""


@lru_cache(maxsize=4)
def open_dataset(settings: DataSettings, seed: int) -> Dataset:
    """Index the data set and keep the images that the settings ask for; nothing is decoded.

    With `validation_per_class` that many training images of each class, no patient's in part, become the test split,
    and the data set's own test images are not touched. Then `train_per_class` and `test_per_class` images are kept,
    drawn by the seed: fewer are a subset of more, and a class that has fewer keeps all. The last few results stay in
    memory.

    Raises:
        ConfigError: `data.classes` differs from the classes of a data set whose classes are fixed.
        DataError: images are missing or bad, or validation would take too many training images of a class.
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
    if settings.split == "patient" and not dataset.train.patients:
        raise DataError(
            f"data.split is patient, and {settings.dataset} knows no patients",
            accepted="a manifest with a column patient, skin8 or fed_isic2019",
            remedy="Leave data.split out",
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
    train = dataset.train
    for label, name in enumerate(dataset.class_names):
        if 0 < (count := int((train.labels == label).sum())) < per_class + FEWEST_LEFT:
            raise _too_many_validated(name, count, per_class)
    draw = draw_groups_per_class if train.groups else draw_per_class
    chosen = draw(train.labels, train.groups, per_class, seed, "subsample", "validation")
    rest = np.setdiff1d(np.arange(len(train.labels)), chosen)
    for label, name in enumerate(dataset.class_names):
        count, left = (int((train.labels[part] == label).sum()) for part in (slice(None), rest))
        if count and not 0 < left < count:
            raise _too_many_validated(name, count, per_class)
    return replace(dataset, train=select(train, rest), test=select(train, chosen), drawn=True)


def _too_many_validated(name: str, count: int, per_class: int) -> DataError:
    return DataError(
        f"the class {name!r} has {count} training images, and data.validation_per_class takes {per_class}",
        accepted=f"at most {max(count - FEWEST_LEFT, 0)}; fewer, if all images are of few patients",
        remedy="Lower data.validation_per_class",
    )


def _subsample(split: Split, per_class: int | None, seed: int, purpose: str) -> Split:
    if per_class is None:
        return split
    return select(split, draw_per_class(split.labels, split.groups, per_class, seed, "subsample", purpose))
