from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dynammo_core.configuration.settings import DataSettings, TaskSettings
from dynammo_core.data.datasets import DATASETS
from dynammo_core.data.loading import load_samples
from dynammo_core.data.samples import Dataset
from dynammo_core.data.task_stream import build_task_stream
from dynammo_core.support.errors import DataError

WriteClasses = Callable[..., Path]
# The seven sets in the order in which ACL's tasks 2, 2, 2, 2, 4, 2, 2 take them
SETS = {
    "MHIST": ("HP", "SSA"),
    "breast_cancer": ("0", "1"),
    "oral_cancer": ("Normal", "OSCC"),
    "Patch_Camelyon": ("no", "yes"),
    "TCGA_STD": ("a", "b", "c", "d"),
    "lung": ("lung_aca", "lung_n"),
    "colon": ("colon_aca", "colon_n"),
}


def load(root: Path) -> Dataset:
    return DATASETS["path16"](DataSettings(dataset="path16", root=str(root)))


@pytest.fixture
def whole(tmp_path: Path, write_classes: WriteClasses) -> Path:
    """Five images a class, not split; all different."""
    for position, (name, classes) in enumerate(SETS.items()):
        write_classes(tmp_path / name, dict.fromkeys(classes, 5), first_seed=100 * position)
    return tmp_path


@pytest.fixture
def split(tmp_path: Path, write_classes: WriteClasses) -> Path:
    """Three training images and one test image a class, as the authors lay the sets out."""
    for position, (name, classes) in enumerate(SETS.items()):
        write_classes(tmp_path / name / "train", dict.fromkeys(classes, 3), first_seed=200 * position)
        write_classes(tmp_path / name / "test", dict.fromkeys(classes, 1), first_seed=200 * position + 100)
    return tmp_path


def test_the_sixteen_classes_stand_set_by_set(split: Path) -> None:
    dataset = load(split)
    assert dataset.class_names == tuple(f"{name}/{label}" for name, classes in SETS.items() for label in classes)
    assert np.bincount(dataset.train.labels).tolist() == [3] * 16
    assert np.bincount(dataset.test.labels).tolist() == [1] * 16
    index = dataset.train.record_ids.index("TCGA_STD/train/b/002.png")
    assert dataset.class_names[dataset.train.labels[index]] == "TCGA_STD/b"
    assert load_samples(dataset.train, [index], 8).images.shape == (1, 1, 8, 8)


def test_sets_that_are_not_split_are_split_within_each_class(whole: Path) -> None:
    dataset = load(whole)
    counts = [np.bincount(part.labels, minlength=16) for part in (dataset.train, dataset.test)]
    assert (counts[0] + counts[1]).tolist() == [5] * 16
    assert all(part.min() > 0 for part in counts)


def test_each_task_of_the_protocol_is_a_set(split: Path) -> None:
    dataset = load(split)
    stream = build_task_stream(TaskSettings(sizes=(2, 2, 2, 2, 4, 2, 2)), 16, 1)
    sets = [{dataset.class_names[label].split("/")[0] for label in classes} for classes in stream.tasks]
    assert sets == [{name} for name in SETS]


def test_the_other_published_order_is_an_explicit_class_order(split: Path) -> None:
    dataset = load(split)
    order = (14, 15, 12, 13, 6, 7, 8, 9, 10, 11, 4, 5, 0, 1, 2, 3)
    stream = build_task_stream(TaskSettings(sizes=(2, 2, 2, 4, 2, 2, 2), class_order=order), 16, 1)
    sets = [dataset.class_names[classes[0]].split("/")[0] for classes in stream.tasks]
    assert sets == ["colon", "lung", "Patch_Camelyon", "TCGA_STD", "oral_cancer", "MHIST", "breast_cancer"]


def test_a_missing_or_unknown_set_is_named_with_the_layout(whole: Path) -> None:
    (whole / "colon").rename(whole / "Colon2")
    with pytest.raises(DataError, match=r"Colon2 is no set of PATH16 \(did you mean 'colon'\?\).*TCGA_STD \(4\)"):
        load(whole)
    shutil.rmtree(whole / "Colon2")
    with pytest.raises(DataError, match=r"set 'colon' is not in .*ROOT/<set>/train/<class>"):
        load(whole)
    with pytest.raises(DataError, match=r"not there; it should be a folder.*ROOT/<set>/train/<class>"):
        load(whole / "nowhere")


def test_a_set_has_its_number_of_classes(whole: Path, write_classes: WriteClasses) -> None:
    write_classes(whole / "lung", {"lung_scc": 2}, first_seed=990)
    with pytest.raises(DataError, match=r"lung holds 3 classes \(lung_aca, lung_n, lung_scc\)\. Accepted: 2 class"):
        load(whole)
    shutil.rmtree(whole / "lung")
    (whole / "lung").mkdir()
    with pytest.raises(DataError, match=r"lung holds 0 classes \(no folders\)"):
        load(whole)


def test_all_sets_are_split_or_none(split: Path, write_classes: WriteClasses) -> None:
    shutil.rmtree(split / "MHIST")
    write_classes(split / "MHIST", dict.fromkeys(SETS["MHIST"], 4), first_seed=5000)
    with pytest.raises(DataError, match="some sets are split into train and test, and others are not"):
        load(split)


def test_a_class_without_images_is_named(split: Path) -> None:
    (split / "colon" / "test" / "colon_n" / "000.png").unlink()
    with pytest.raises(DataError, match="the class 'colon/colon_n' has 3 training and 0 test images"):
        load(split)


def test_folders_without_any_image_are_refused(whole: Path) -> None:
    for image in whole.rglob("*.png"):
        image.unlink()
    with pytest.raises(DataError, match="the class 'MHIST/HP' has 0 training and 0 test images"):
        load(whole)
