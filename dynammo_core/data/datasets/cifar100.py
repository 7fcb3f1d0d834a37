"""CIFAR-100 (Krizhevsky 2009): 60,000 colour photographs of 32x32 pixels, a hundred kinds of things."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dynammo_core.configuration.settings import DataSettings
from dynammo_core.data.index.downloads import download_into
from dynammo_core.data.index.folders import data_root, missing
from dynammo_core.data.samples import Dataset, Split
from dynammo_core.data.sources import ArraySource
from dynammo_core.support.errors import DataError

FOLDER = "cifar-100-python"
FILES = ("train", "test", "meta")
SOURCE = "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz"
LAYOUT = f"ROOT/{FOLDER}/ with the files {', '.join(FILES)}, as {SOURCE} unpacks; ROOT may be that folder itself"


def load_cifar100(settings: DataSettings) -> Dataset:
    """Load the published 50,000 training and 10,000 test images, 500 and 100 per class; classes in alphabetical order.

    They are looked for in `data.root` (or $DYNAMMO_DATA/cifar100, or ~/.cache/dynammo/cifar100), and if missing
    downloaded into it. torchvision checks each file against the publisher's MD5 sum before it reads it.
    https://www.cs.toronto.edu/~kriz/learning-features-2009-TR.pdf

    Raises:
        DataError: `data.root` is not a folder, the files are missing and cannot be downloaded, or one is damaged.
    """
    root = data_root(settings)
    if settings.root is not None and not root.is_dir():
        raise missing(settings, root, "a folder", LAYOUT)
    if root.name == FOLDER and _is_there(root):
        root = root.parent
    if not _is_there(root / FOLDER):
        _download(root)
    return _read(root)


def _is_there(folder: Path) -> bool:
    return all((folder / name).is_file() for name in FILES)


def _read(root: Path) -> Dataset:
    from torchvision.datasets import CIFAR100  # takes three seconds to import, and only this data set needs it

    try:
        train, test = (CIFAR100(root, train=train) for train in (True, False))
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"{root / FOLDER} is damaged or not CIFAR-100: {' '.join(str(error).split())}",
            accepted=LAYOUT,
            remedy="Delete the folder; it is then downloaded again where there is internet",
        ) from error
    train_split, test_split = (
        _split(part.data, part.targets, name) for part, name in ((train, "train"), (test, "test"))
    )
    return Dataset(tuple(train.classes), train_split, test_split)


def _download(root: Path) -> None:
    from torchvision.datasets import CIFAR100

    files = [f"{FOLDER}/{name}" for name in FILES]
    try:
        download_into(root, dict(zip(files, files, strict=True)), lambda folder: CIFAR100(folder, download=True))
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"CIFAR-100 is not in {root}, and downloading it failed ({' '.join(str(error).split())})",
            accepted=LAYOUT,
            remedy=f"Fetch {SOURCE} where there is internet, unpack it, and set data.root to the folder that holds "
            f"{FOLDER}",
        ) from error


def _split(images: NDArray[np.uint8], labels: list[int], name: str) -> Split:
    ids = tuple(f"{name}/{i:05d}" for i in range(len(labels)))
    return Split(ArraySource(images), np.array(labels, dtype=np.int64), ids)
