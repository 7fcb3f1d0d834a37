from __future__ import annotations

import numpy as np
from sklearn.datasets import load_digits

from dynammo_core.configuration.settings import DataSettings
from dynammo_core.data.datasets import DATASETS


def test_digits_are_all_there_and_split_within_each_class() -> None:
    dataset = DATASETS["digits"](DataSettings(dataset="digits"))
    assert dataset.class_names == tuple("0123456789")
    # scikit-learn's class sizes are 178 182 177 183 181 182 181 179 174 180; round(0.2 n) each, 359 in all
    assert np.bincount(dataset.test.labels).tolist() == [36, 36, 35, 37, 36, 36, 36, 36, 35, 36]
    assert len(dataset.train.labels) == 1797 - 359
    assert dataset.drawn
    assert not {*dataset.train.record_ids} & {*dataset.test.record_ids}


def test_an_images_label_and_record_are_its_own() -> None:
    dataset = DATASETS["digits"](DataSettings(dataset="digits"))
    original = load_digits()
    for split in (dataset.train, dataset.test):
        for i in (0, len(split.labels) - 1):
            number = int(split.record_ids[i].removeprefix("digits/"))
            assert split.labels[i] == original.target[number]
            # 17 grey levels, 0..16, spread over 0..255
            assert (split.source.read(i) == np.rint(original.images[number] * 255 / 16)).all()
