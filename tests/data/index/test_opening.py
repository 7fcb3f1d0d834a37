from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from dynammo_core.configuration.settings import DataSettings
from dynammo_core.data.index.opening import open_dataset
from dynammo_core.support.errors import ConfigError, DataError

WriteClasses = Callable[..., Path]


@pytest.fixture
def root(tmp_path: Path, write_classes: WriteClasses) -> str:
    write_classes(tmp_path / "train", {"a": 6, "b": 12})
    write_classes(tmp_path / "test", {"a": 4, "b": 4}, first_seed=100)
    return str(tmp_path)


def test_an_unknown_data_set_is_answered_with_the_nearest() -> None:
    with pytest.raises(ValidationError, match=r"unknown data set 'digit'.*did you mean 'digits'.*fashion_mnist"):
        DataSettings(dataset="digit")


def test_fixed_classes_cannot_be_configured() -> None:
    with pytest.raises(ConfigError, match=r"the classes of digits are fixed.*Leave data\.classes out"):
        open_dataset(DataSettings(dataset="digits", classes=("one", "two")), 1)


def test_the_same_settings_open_once(root: str) -> None:
    settings = DataSettings(dataset="image_folder", root=root, train_per_class=2)
    assert open_dataset(settings, 1) is open_dataset(DataSettings(**settings.model_dump()), 1)


def test_fewer_images_are_a_subset_of_more_and_a_small_class_keeps_all(root: str) -> None:
    def records(count: int, seed: int = 1) -> set[str]:
        settings = DataSettings(dataset="image_folder", root=root, train_per_class=count)
        dataset = open_dataset(settings, seed)
        assert np.bincount(dataset.train.labels).tolist() == [min(count, 6), min(count, 12)]
        assert len(dataset.test.labels) == 8
        return set(dataset.train.record_ids)

    assert records(2) < records(5) < records(9)
    assert records(2, seed=1) != records(2, seed=2)


def test_test_images_are_subsampled_too(root: str) -> None:
    dataset = open_dataset(DataSettings(dataset="image_folder", root=root, test_per_class=3), 1)
    assert np.bincount(dataset.test.labels).tolist() == [3, 3]
    assert len(dataset.train.labels) == 18


def test_validation_takes_training_images_and_leaves_the_test_alone(root: str) -> None:
    settings = DataSettings(dataset="image_folder", root=root, validation_per_class=4)
    dataset = open_dataset(settings, 1)
    # 6 and 12 training images, 4 of each taken away
    assert np.bincount(dataset.train.labels).tolist() == [2, 8]
    assert np.bincount(dataset.test.labels).tolist() == [4, 4]
    assert not {*dataset.train.record_ids} & {*dataset.test.record_ids}
    assert all(record.startswith("train/") for record in dataset.test.record_ids)
    smaller = open_dataset(settings.model_copy(update={"train_per_class": 3, "test_per_class": 1}), 1)
    assert np.bincount(smaller.train.labels).tolist() == [2, 3]
    assert {*smaller.train.record_ids} < {*dataset.train.record_ids}
    assert {*smaller.test.record_ids} < {*dataset.test.record_ids}


def test_validation_may_not_take_a_whole_class(root: str) -> None:
    for wanted in (5, 6):  # of six; one image alone cannot be trained on
        with pytest.raises(DataError, match=rf"'a' has 6 training images.*takes {wanted}.*Accepted: at most 4"):
            open_dataset(DataSettings(dataset="image_folder", root=root, validation_per_class=wanted), 1)


def patients_manifest(folder: Path, images: int, patients: int) -> str:
    """A manifest without a split, whose images go round the patients; each patient has one of two diseases."""
    lines = []
    for i in range(images):
        (folder / f"{i}.png").write_bytes(f"image {i}".encode())
        lines.append(f"{i}.png,{'ab'[i % patients % 2]},p{i % patients}")
    (folder / "manifest.csv").write_text("\n".join(["path,label,patient", *lines]))
    return str(folder)


def test_validation_and_subsets_keep_patients_together(tmp_path: Path) -> None:
    root = patients_manifest(tmp_path, 120, 40)
    settings = DataSettings(dataset="manifest", root=root, validation_per_class=9)
    dataset = open_dataset(settings, 1)
    assert np.bincount(dataset.test.labels).tolist() == [9, 9]  # of patients with three images each
    assert not {*dataset.train.patients} & {*dataset.test.patients}
    some = open_dataset(DataSettings(dataset="manifest", root=root, train_per_class=6), 1)
    assert np.bincount(some.train.labels).tolist() == [6, 6]
    assert len({*some.train.patients}) == 4


def test_a_split_by_patient_needs_patients(root: str) -> None:
    for settings in (DataSettings(dataset="digits", split="patient"), DataSettings(dataset="image_folder", root=root)):
        with pytest.raises(DataError, match=r"data\.split is patient, and .* knows no patients"):
            open_dataset(settings.model_copy(update={"split": "patient"}), 1)
