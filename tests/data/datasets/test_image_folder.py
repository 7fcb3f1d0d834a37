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

WriteClasses = Callable[..., Path]


def load(root: Path, classes: tuple[str, ...] | None = None) -> Dataset:
    return DATASETS["image_folder"](DataSettings(dataset="image_folder", root=str(root), classes=classes))


def test_two_levels_are_taken_as_they_are(tmp_path: Path, write_classes: WriteClasses) -> None:
    write_classes(tmp_path / "train", {"flu": 3, "cold": 2})
    write_classes(tmp_path / "test", {"flu": 1, "cold": 2}, first_seed=100)
    dataset = load(tmp_path)
    assert dataset.class_names == ("cold", "flu")
    assert np.bincount(dataset.train.labels).tolist() == [2, 3]
    assert np.bincount(dataset.test.labels).tolist() == [2, 1]
    assert dataset.test.record_ids == ("test/cold/000.png", "test/cold/001.png", "test/flu/000.png")
    assert dataset.train.sites is None


def test_one_level_is_split_the_same_way_each_time(tmp_path: Path, write_classes: WriteClasses) -> None:
    write_classes(tmp_path, {"a": 10, "b": 20})
    one, other = load(tmp_path), load(tmp_path)
    assert one.drawn and {*one.test.labels.tolist()} == {*one.train.labels.tolist()} == {0, 1}
    assert len(one.train.labels) > len(one.test.labels)
    assert one.test.record_ids == other.test.record_ids


def test_duplicates_of_an_image_do_not_straddle_the_split(tmp_path: Path, write_classes: WriteClasses) -> None:
    write_classes(tmp_path, {"a": 10})
    for i in range(10):
        shutil.copy(tmp_path / "a" / f"{i:03d}.png", tmp_path / "a" / f"copy{i}.png")
    dataset = load(tmp_path)
    assert len(dataset.test.labels) % 2 == 0
    numbers = [
        {int(record[-7:-4].lstrip("py")) for record in part.record_ids} for part in (dataset.train, dataset.test)
    ]
    assert not numbers[0] & numbers[1]


def test_other_files_are_passed_over_and_subfolders_belong_to_their_class(
    tmp_path: Path, write_classes: WriteClasses, write_image: Callable[..., Path]
) -> None:
    write_classes(tmp_path, {"a": 2})
    write_image(tmp_path / "a" / "patient7" / "scan.PNG", 50)
    write_image(tmp_path / "a" / "._001.png", 51)
    (tmp_path / "a" / "notes.txt").write_text("fasting")
    (tmp_path / "README.md").write_text("scans")
    (tmp_path / ".cache").mkdir()
    dataset = load(tmp_path)
    assert {*dataset.train.record_ids, *dataset.test.record_ids} == {"a/000.png", "a/001.png", "a/patient7/scan.PNG"}
    assert dataset.class_names == ("a",)


def test_the_registry_gives_order_and_lets_a_class_be_absent(tmp_path: Path, write_classes: WriteClasses) -> None:
    write_classes(tmp_path, {"a": 5, "c": 7})
    dataset = load(tmp_path, classes=("c", "b", "a"))
    assert dataset.class_names == ("c", "b", "a")
    counts = sum(np.bincount(part.labels, minlength=3) for part in (dataset.train, dataset.test))
    assert counts.tolist() == [7, 0, 5]


def test_a_folder_outside_the_registry_is_named(tmp_path: Path, write_classes: WriteClasses) -> None:
    write_classes(tmp_path, {"pneumona": 5})
    with pytest.raises(DataError, match=r"'pneumona' of the folder .*did you mean 'pneumonia'"):
        load(tmp_path, classes=("pneumonia", "healthy"))


def test_an_empty_class_folder_is_named(tmp_path: Path, write_classes: WriteClasses) -> None:
    write_classes(tmp_path / "train", {"a": 2, "b": 2})
    write_classes(tmp_path / "test", {"a": 2, "b": 0}, first_seed=100)
    with pytest.raises(DataError, match="the class 'b' has 2 training and 0 test images"):
        load(tmp_path)


def test_an_image_in_train_and_test_is_named(tmp_path: Path, write_classes: WriteClasses) -> None:
    write_classes(tmp_path / "train", {"a": 2})
    write_classes(tmp_path / "test", {"a": 2}, first_seed=1)
    with pytest.raises(DataError, match=r"train/a/001\.png.*test/a/000\.png"):
        load(tmp_path)


def test_what_is_laid_out_otherwise_is_refused(tmp_path: Path, write_classes: WriteClasses) -> None:
    with pytest.raises(DataError, match=r"holds no class folders.*ROOT/train/<class>"):
        load(tmp_path)
    write_classes(tmp_path, {"a": 0})
    with pytest.raises(DataError, match=r"holds no images.*\.png"):
        load(tmp_path)
    write_classes(tmp_path / "train", {"a": 2})
    with pytest.raises(DataError, match="train has no test/ beside it"):
        load(tmp_path)
