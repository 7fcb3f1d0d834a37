"""scikit-learn's digits: 1,797 handwritten digits of 8x8 pixels, part of the UCI Optical Recognition data set."""

from __future__ import annotations

import numpy as np

from dynammo_core.configuration.settings import DataSettings
from dynammo_core.data.index.sides import split_by_number
from dynammo_core.data.samples import Dataset, Split
from dynammo_core.data.sources import ArraySource, array_keys


def load_digits(_: DataSettings) -> Dataset:
    """Load the digits, 17 grey levels spread over 0..255, split 80/20 within each class by `SPLIT_SEED`."""
    from sklearn.datasets import load_digits as load  # two seconds to import, and only this data set needs it

    bunch = load()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    labels = bunch.target.astype(np.int64)
    test = split_by_number(labels, array_keys(images))
    train_split, test_split = (
        Split(ArraySource(images[chosen]), labels[chosen], tuple(f"digits/{i:04d}" for i in np.flatnonzero(chosen)))
        for chosen in (~test, test)
    )
    return Dataset(tuple(str(digit) for digit in range(10)), train_split, test_split, drawn=True)
