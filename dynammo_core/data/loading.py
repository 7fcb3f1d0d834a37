"""From the section `data` of a configuration to the images of a run, and from their indices to pixels of one size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from dynammo_core.configuration.settings import DataSettings
from dynammo_core.data.datasets import DATASETS, LABELS
from dynammo_core.data.samples import Dataset, ImageSource, Samples, Split
from dynammo_core.data.sources import ArraySource, resolve_selection, select
from dynammo_core.support.errors import ConfigError, DataError
from dynammo_core.support.seeding import derive_seed

CHUNK = 512
"""Images read and resized at a time, which bounds the memory that images of many megapixels take."""


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


def load_samples(split: Split, indices: Sequence[int] | NDArray[np.int64], image_size: int) -> Samples:
    """Decode and resize images: N samples in the order of `indices`, Tensor[N, C, S, S] uint8 with S = `image_size`.

    C is 1 if all of them are grey, else 3. Resizing is bilinear, with antialiasing if the image shrinks; an image that
    is not square is stretched to a square.

    Raises:
        DataError: an image cannot be read.
    """
    index = np.asarray(indices, dtype=np.int64)
    if not len(index):
        return Samples.empty()
    source, held = resolve_selection(split.source, index)
    parts = [_read_chunk(source, held[start : start + CHUNK], image_size) for start in range(0, len(held), CHUNK)]
    channels = max(part.shape[1] for part in parts)
    images = torch.cat([part.expand(-1, channels, -1, -1) for part in parts])
    chosen = index.tolist()
    return Samples(
        images,
        torch.from_numpy(split.labels[index]),
        tuple(split.record_ids[i] for i in chosen),
        tuple(split.patients[i] for i in chosen) if split.patients else (),
    )


def _read_chunk(source: ImageSource, indices: NDArray[np.int64], size: int) -> Tensor:
    if isinstance(source, ArraySource):
        return _resize(_to_tensor(source.images[indices]), size)
    images = [_to_tensor(source.read(index)[None]) for index in indices.tolist()]
    by_shape: dict[torch.Size, list[int]] = {}
    for position, image in enumerate(images):
        by_shape.setdefault(image.shape, []).append(position)
    channels = max(image.shape[1] for image in images)
    resized = torch.empty(len(images), channels, size, size, dtype=torch.uint8)
    for positions in by_shape.values():
        resized[positions] = _resize(torch.cat([images[position] for position in positions]), size).expand(
            -1, channels, -1, -1
        )
    return resized


def _to_tensor(images: NDArray[np.uint8]) -> Tensor:
    """Turn [N, H, W] or [N, H, W, 3] into Tensor[N, C, H, W]."""
    tensor = torch.from_numpy(images if images.flags.writeable else images.copy())
    return tensor[:, None] if tensor.ndim == 3 else tensor.permute(0, 3, 1, 2)


def _resize(images: Tensor, size: int) -> Tensor:
    if images.shape[-2:] == (size, size):
        return images.contiguous()
    # antialias widens the filter by the scale, and only if the image shrinks: growing images get plain bilinear
    return F.interpolate(images, size=(size, size), mode="bilinear", antialias=True, align_corners=False).contiguous()


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
