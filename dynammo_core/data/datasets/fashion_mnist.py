"""Fashion-MNIST (Xiao et al. 2017, arXiv 1708.07747): 70,000 grey images of 28x28 pixels, ten kinds of clothes, MIT."""

from __future__ import annotations

import gzip
import hashlib
import math
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dynammo_core.configuration.settings import DataSettings
from dynammo_core.data.index.downloads import download_into
from dynammo_core.data.index.folders import data_root, missing
from dynammo_core.data.samples import Dataset, Split
from dynammo_core.data.sources import ArraySource
from dynammo_core.support.errors import DataError

CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")

# name -> (shape, SHA-256 of the unpacked file). Unpacked, because Debian packs the same data anew; the hashes belong to
# the publisher's archives, whose MD5 sums torchvision carries.
FILES: Mapping[str, tuple[tuple[int, ...], str]] = {
    "train-images-idx3-ubyte": ((60_000, 28, 28), "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"),
    "train-labels-idx1-ubyte": ((60_000,), "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"),
    "t10k-images-idx3-ubyte": ((10_000, 28, 28), "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"),
    "t10k-labels-idx1-ubyte": ((10_000,), "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"),
}
LAYOUT = f"a folder with the four files {', '.join(f'{name}.gz' for name in FILES)} (or unpacked, without .gz)"


def load_fashion_mnist(settings: DataSettings) -> Dataset:
    """Load the published 60,000 training and 10,000 test images.

    They are looked for in `data.root` (or $DYNAMMO_DATA/fashion_mnist, or ~/.cache/dynammo/fashion_mnist), there also
    as torchvision lays them out, then where Debian's package dataset-fashion-mnist puts them; failing that they are
    downloaded to the first of these.

    Raises:
        DataError: `data.root` is not a folder, the files are missing and cannot be downloaded, or one is damaged.
    """
    root = data_root(settings)
    if settings.root is not None and not root.is_dir():
        raise missing(settings, root, "a folder", LAYOUT)
    paths = _find(root) or _find(root / "FashionMNIST" / "raw") or _find(DEBIAN_FOLDER) or _download(root)
    train_images, train_labels, test_images, test_labels = (read_idx(paths[name], *FILES[name]) for name in FILES)
    return Dataset(CLASSES, _split(train_images, train_labels, "train"), _split(test_images, test_labels, "test"))


def read_idx(path: Path, shape: tuple[int, ...], sha256: str) -> NDArray[np.uint8]:
    """Read an IDX file, packed or not: two zeros, type 8, the number of dimensions, their sizes, the values (bytes).

    Raises:
        DataError: the file is damaged, has another shape, or is not the published one.
    """
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:
        raise _damaged(path, str(error)) from error
    start = 4 + 4 * len(shape)
    header = struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape)
    if content[:start] != header:
        raise _damaged(path, f"its header is {content[:start].hex()}, that of {shape} bytes is {header.hex()}")
    if len(content) - start != math.prod(shape):
        raise _damaged(path, f"it holds {len(content) - start} values, and its header says {math.prod(shape)}")
    if (actual := hashlib.sha256(content).hexdigest()) != sha256:
        raise _damaged(path, f"its content has the SHA-256 {actual}, the published one {sha256}")
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape)


def _find(folder: Path) -> dict[str, Path] | None:
    found = {}
    for name in FILES:
        candidates = [path for path in (folder / f"{name}.gz", folder / name) if path.is_file()]
        if not candidates:
            return None
        found[name] = candidates[0]
    return found


def _download(root: Path) -> dict[str, Path]:
    from torchvision.datasets import FashionMNIST  # three seconds to import, and rarely needed

    files = {f"{name}.gz": f"FashionMNIST/raw/{name}.gz" for name in FILES}
    try:
        download_into(root, files, lambda folder: FashionMNIST(folder, download=True))
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"Fashion-MNIST is not in {root}, {root / 'FashionMNIST' / 'raw'} or {DEBIAN_FOLDER}, and downloading it "
            f"failed ({reason})",
            accepted=LAYOUT,
            remedy="Run `apt-get install dataset-fashion-mnist`, or fetch the four files from "
            f"{FashionMNIST.mirrors[0]} or github.com/zalandoresearch/fashion-mnist (data/fashion) and set data.root "
            "to their folder",
        ) from error
    return {name: root / f"{name}.gz" for name in FILES}


def _split(images: NDArray[np.uint8], labels: NDArray[np.uint8], name: str) -> Split:
    return Split(ArraySource(images), labels.astype(np.int64), tuple(f"{name}/{i:05d}" for i in range(len(labels))))


def _damaged(path: Path, why: str) -> DataError:
    return DataError(
        f"{path} is not Fashion-MNIST's file or is damaged: {why}",
        remedy="Delete the file; it is then taken from Debian's package or downloaded again",
    )
