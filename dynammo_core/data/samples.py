"""Labelled images in memory, as a site's training, memory and evaluation use them, and the splits they come from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dynammo_core.data.decoded.stored_images import Images, add_pixels, chosen, joined
from dynammo_core.support.errors import DataError, unprintable

FEWEST_SAMPLES = 2
"""A site with fewer abstains, but from sums over images: one image has no batch statistics. What a single one tells, a
site's policy forbids (`fewest_images`)."""


@dataclass(frozen=True)
class Samples:
    """N decoded images of one size.

    Attributes:
        images: Tensor[N, C, S, S] uint8, C is 1 (grey) or 3 (RGB); or what is read like one, if it is too large.
        labels: Tensor[N] int64, global class indices.
        record_ids: N identifiers of the records the images come from; they never leave the site.
        patients: N identifiers of the persons they show, or empty if the data do not say; they never leave the site.
    """

    images: Images
    labels: Tensor
    record_ids: tuple[str, ...]
    patients: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        sizes = (len(self.images), len(self.labels), len(self.record_ids), len(self.patient_ids))
        if len(set(sizes)) > 1:
            raise ValueError(f"images, labels, record ids and patients differ in number: {sizes}")

    @property
    def patient_ids(self) -> tuple[str, ...]:
        """Return the N patients; where the data do not say who it is, each record counts as a patient of its own."""
        return self.patients or self.record_ids

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: Tensor | Sequence[int]) -> Samples:
        """Return the samples at `indices`, in that order."""
        index = torch.as_tensor(indices, dtype=torch.int64)
        places = index.tolist()
        return Samples(
            chosen(self.images, index),
            self.labels[index],
            tuple(self.record_ids[i] for i in places),
            tuple(self.patients[i] for i in places) if self.patients else (),
        )

    def batches(self, size: int) -> Iterator[Tensor]:
        """Yield the images in order, in Tensors of up to `size` images."""
        for start in range(0, len(self), size):
            yield self.images[start : start + size]

    @cached_property
    def pixels_digest(self) -> str:
        """Return a hash of shape and pixels of all images, in hexadecimal digits."""
        digest = hashlib.sha256(json.dumps(list(self.images.shape)).encode())
        add_pixels(digest, self.images)
        return digest.hexdigest()

    @property
    def nbytes(self) -> int:
        """Return the bytes of memory that the images take; those on disk take none."""
        return self.images.nbytes if isinstance(self.images, Tensor) else 0

    def of_class(self, label: int) -> Samples:
        """Return the samples of one class, in their order here."""
        return self.subset(torch.nonzero(self.labels == label).flatten())

    def class_counts(self, classes: int) -> list[int]:
        """Return the number of samples of each of the first `classes` classes."""
        return torch.bincount(self.labels, minlength=classes).tolist()

    @staticmethod
    def concatenate(parts: Sequence[Samples]) -> Samples:
        """Concatenate all parts, without empty ones; grey images become RGB if others are."""
        full = [part for part in parts if len(part)]
        if not full:
            return Samples.empty()
        labels = torch.cat([part.labels for part in full])
        return Samples(
            joined([part.images for part in full]),
            labels,
            tuple(record for part in full for record in part.record_ids),
            tuple(patient for part in full for patient in part.patient_ids) if any(p.patients for p in full) else (),
        )

    @staticmethod
    def empty() -> Samples:
        """Return a set without samples."""
        return Samples(torch.empty(0, 1, 1, 1, dtype=torch.uint8), torch.empty(0, dtype=torch.int64), ())


class ImageSource(Protocol):
    """A source of images by index, decoded when read."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> NDArray[np.uint8]:
        """Return image `index` as uint8 [H, W] (grey) or [H, W, 3] (RGB).

        Raises:
            DataError: the image cannot be read; the message names its path and row.
        """
        ...


@dataclass(frozen=True)
class Split:
    """The training or the test part of a data set: an index of all its images, none decoded yet.

    Attributes:
        source: N images.
        labels: [N] int64, indices into the data set's `class_names`.
        record_ids: N identifiers, stable over runs.
        sites: N names of the site each image belongs to, if the data say so.
        patients: N identifiers of the persons that the images show, or empty if the data do not say.
        contents: N SHA-256 of the files' bytes, or empty if the images are not files.
    """

    source: ImageSource
    labels: NDArray[np.int64]
    record_ids: tuple[str, ...]
    sites: tuple[str, ...] | None = None
    patients: tuple[str, ...] = ()
    contents: tuple[str, ...] = ()

    @property
    def patient_ids(self) -> tuple[str, ...]:
        """Return the N patients; where the data do not say who it is, each record counts as a patient of its own."""
        return self.patients or self.record_ids

    @property
    def groups(self) -> tuple[str, ...]:
        """Return N keys, equal for images that stay together: patients, else contents; empty if neither is known."""
        return self.patients or self.contents


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set: its class names in their fixed order, and its two splits.

    Attributes:
        drawn: whether this project chose the test images, not the data.
        notes: what a person should know of how the data were read, a sentence each, such as the files passed over.

    Raises:
        DataError: the name of a class or a site holds characters that cannot be printed.
    """

    class_names: tuple[str, ...]
    train: Split
    test: Split
    drawn: bool = False
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        sites = {*(self.train.sites or ()), *(self.test.sites or ())}
        for kind, names, place in (("class", self.class_names, "folder"), ("site", sorted(sites), "entry")):
            for name in names:
                if found := unprintable(name):
                    raise DataError(
                        f"the {kind} {name!r} holds characters that cannot be printed ({found})",
                        accepted="names of letters, digits, punctuation and plain spaces, in UTF-8",
                        remedy=f"Rename its {place} or correct its label",
                    )
