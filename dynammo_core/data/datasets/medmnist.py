"""MedMNIST (Yang et al. 2023, doi 10.1038/s41597-022-01721-8): its 2D sets of medical images, alone or in a row."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dynammo_core.configuration.settings import DataSettings
from dynammo_core.data.index.folders import data_root, missing
from dynammo_core.data.samples import Dataset, ImageSource, Split
from dynammo_core.data.sources import ArraySource
from dynammo_core.support.errors import ConfigError, DataError, unknown_name

SUFFIXES = ("", "_64", "_128", "_224")
"""Suffixes of the files' names, by the side of their images; 28 pixels have no suffix."""


@dataclass(frozen=True)
class MedSet:
    """A published file: its name without .npz, its address and MD5 sum, and its classes as `<set>/<class>`."""

    name: str
    url: str
    md5: str
    class_names: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class ChainedSource:
    """Several sources, one after the other; their images may differ in size and in colour."""

    sources: tuple[ImageSource, ...]

    def __len__(self) -> int:
        return sum(map(len, self.sources))

    def read(self, index: int) -> NDArray[np.uint8]:
        """Return image `index`, as `ImageSource` declares."""
        for source in self.sources:
            if index < len(source):
                return source.read(index)
            index -= len(source)
        raise IndexError(index)


def load_medmnist(settings: DataSettings) -> Dataset:
    """Load the sets that `data.sets` names, with their classes in sequence: `pathmnist/adipose`, ..., `bloodmnist/...`.

    A set is named as its file in `data.root`, without .npz: the images of `pathmnist` have 28 pixels, those of
    `pathmnist_224` 224. Training and test images are the published ones; the published validation images take no part,
    so that results compare with the literature's.

    Raises:
        ConfigError: no set is named, a set is unknown (as are those with several labels per image or three
            dimensions), or a set is named in two sizes.
        DataError: the package medmnist is not installed, or a file is missing or not the published one.
    """
    published = published_sets()
    for name in settings.sets or ():
        if name not in published:
            raise ConfigError(f"data.sets: {unknown_name('set', name, published)}", accepted=", ".join(published))
    sets = [published[name] for name in settings.sets or ()]
    names = tuple(name for part in sets for name in part.class_names)
    if not sets or len(set(names)) < len(names):
        raise ConfigError(
            f"data.sets is {list(settings.sets or ())}",
            accepted=f"at least one set of MedMNIST, each in one size: {', '.join(published)}",
        )
    files = [_file(settings, part, sets) for part in sets]
    return Dataset(names, _split(files, sets, "train"), _split(files, sets, "test"))


def published_sets() -> dict[str, MedSet]:
    """Return every 2D set with one label per image, in every size, by its file's name, as the package medmnist does.

    Raises:
        DataError: the package is not installed.
    """
    try:
        from medmnist import INFO  # takes seconds to import, and only this data set needs it
    except ModuleNotFoundError as error:
        raise DataError(
            f"medmnist needs the package {error.name}, which knows its files and their hashes",
            remedy="Install the extra: `pip install '.[medmnist]'` in this project's folder",
        ) from error
    return {
        f"{flag}{suffix}": MedSet(f"{flag}{suffix}", info[f"url{suffix}"], info[f"MD5{suffix}"], _classes(flag, info))
        for flag, info in INFO.items()
        if not flag.endswith("3d") and not info["task"].startswith("multi-label")
        for suffix in SUFFIXES
    }


def _classes(flag: str, info: Mapping[str, Mapping[str, str]]) -> tuple[str, ...]:
    labels = info["label"]
    return tuple(f"{flag}/{labels[str(index)]}" for index in range(len(labels)))


def _file(settings: DataSettings, part: MedSet, sets: Sequence[MedSet]) -> Path:
    path = data_root(settings) / f"{part.name}.npz"
    if not path.is_file():
        raise missing(settings, path, "a file", "; ".join(f"ROOT/{other.name}.npz from {other.url}" for other in sets))
    with path.open("rb") as content:
        actual = hashlib.file_digest(content, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if actual != part.md5:
        raise DataError(
            f"{path} is not MedMNIST's file or is damaged: its MD5 is {actual}, the published one {part.md5}",
            remedy=f"Fetch it again from {part.url}",
        )
    return path


def _split(files: Sequence[Path], sets: Sequence[MedSet], name: Literal["train", "test"]) -> Split:
    sources: list[ArraySource] = []
    labels: list[NDArray[np.int64]] = []
    records: list[str] = []
    first = 0
    for file, part in zip(files, sets, strict=True):
        with np.load(file) as arrays:
            sources.append(ArraySource(arrays[f"{name}_images"]))
            labels.append(first + arrays[f"{name}_labels"][:, 0].astype(np.int64))
        records += [f"{part.name}/{name}/{index:06d}" for index in range(len(sources[-1]))]
        first += len(part.class_names)
    return Split(ChainedSource(tuple(sources)), np.concatenate(labels), tuple(records))
