from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dynammo_core.configuration.settings import DataSettings
from dynammo_core.data.datasets import DATASETS
from dynammo_core.data.samples import Dataset
from dynammo_core.support.errors import DataError

# MedNIST's public class folders
CLASSES = ("AbdomenCT", "BreastMRI", "CXR", "ChestCT", "Hand", "HeadCT")
WriteClasses = Callable[..., Path]


def load(root: Path) -> Dataset:
    return DATASETS["medical_mnist"](DataSettings(dataset="medical_mnist", root=str(root)))


def test_the_public_layout_is_split_within_each_class(tmp_path: Path, write_classes: WriteClasses) -> None:
    dataset = load(write_classes(tmp_path, dict.fromkeys(CLASSES, 5)))
    assert dataset.class_names == CLASSES
    assert dataset.drawn
    counts = [np.bincount(part.labels) for part in (dataset.train, dataset.test)]
    assert (counts[0] + counts[1]).tolist() == [5] * 6
    assert all(part.min() > 0 for part in counts)


def test_train_and_test_folders_are_taken_as_they_are(tmp_path: Path, write_classes: WriteClasses) -> None:
    write_classes(tmp_path / "train", dict.fromkeys(CLASSES, 2))
    write_classes(tmp_path / "test", dict.fromkeys(CLASSES, 3), first_seed=100)
    dataset = load(tmp_path)
    assert np.bincount(dataset.train.labels).tolist() == [2] * 6
    assert np.bincount(dataset.test.labels).tolist() == [3] * 6


def test_six_classes_no_more_no_less(tmp_path: Path, write_classes: WriteClasses) -> None:
    write_classes(tmp_path, {**dict.fromkeys(CLASSES, 5), "Foot": 5})
    with pytest.raises(DataError, match=r"the label 'Foot' of the folder"):
        load(tmp_path)
    shutil.rmtree(tmp_path / "Foot")
    shutil.rmtree(tmp_path / "Hand")
    with pytest.raises(DataError, match="the class 'Hand' has 0 training and 0 test images"):
        load(tmp_path)


def test_a_missing_folder_says_which_layout_is_looked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"ROOT/<class>/\*\.jpeg.*AbdomenCT, BreastMRI, CXR"):
        load(tmp_path / "nowhere")
