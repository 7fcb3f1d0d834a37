from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from dicom_files import write_dicom

from dynammo_core.configuration.settings import DataSettings
from dynammo_core.data.images.dicom import hash_patient
from dynammo_core.data.index.records import ImageRecord, assemble, refuse_empty_classes
from dynammo_core.support.errors import DataError

SETTINGS = DataSettings(dataset="manifest")
WriteImage = Callable[..., Path]


def test_the_same_bytes_in_train_and_test_are_named(tmp_path: Path, write_image: Callable[..., Path]) -> None:
    paths = [write_image(tmp_path / f"{i}.png", seed) for i, seed in enumerate([1, 2, 3, 1])]
    records = [
        ImageRecord(path, "a", path.name, place=f"row {i + 2}", split="train" if i < 2 else "test")
        for i, path in enumerate(paths)
    ]
    with pytest.raises(DataError, match=r"in training and in the test, 1 in all.*0\.png \(row 2\).*3\.png \(row 5\)"):
        assemble(SETTINGS, records, ("a",), "here", absent=False)
    assert len(assemble(SETTINGS, records[:3], ("a",), "here", absent=False).test.labels) == 1


def test_a_label_outside_the_registry_is_named(tmp_path: Path) -> None:
    record = ImageRecord(tmp_path / "x.png", "melanona", "x", place="row 2")
    with pytest.raises(
        DataError, match=r"'melanona'.*x\.png \(row 2\).*did you mean 'melanoma'.*Accepted: naevus, melanoma"
    ):
        assemble(SETTINGS, [record], ("naevus", "melanoma"), "here", absent=False)


@pytest.mark.parametrize(("train", "test"), [([0, 0, 1], [0]), ([0], [0, 1]), ([0, 0], [0])])
def test_an_empty_class_is_named(train: list[int], test: list[int]) -> None:
    labels = np.array(train + test)
    in_test = np.arange(len(labels)) >= len(train)
    counts = f"{train.count(1)} training and {test.count(1)} test images in here"
    with pytest.raises(DataError, match=f"the class 'b' has {counts}"):
        refuse_empty_classes(labels, in_test, ("a", "b"), "here", absent=False)


@pytest.mark.parametrize("in_test", [[False, True], [False, True, False], [False, True, True]])
def test_a_class_of_the_registry_may_be_absent_wholly_or_by_half(in_test: list[bool]) -> None:
    labels = np.array([0, 0, 1][: len(in_test)])
    refuse_empty_classes(labels, np.array(in_test), ("a", "b"), "here", absent=True)


def test_slices_of_one_patient_of_dicom_stay_on_one_side(tmp_path: Path) -> None:
    """The header says whose they are, also when it is known from an earlier opening; what the data say goes before."""
    numbers = [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    records = [
        ImageRecord(write_dicom(tmp_path / f"{i}", np.full((2, 2), i, np.uint8), PatientID=f"P{number}"), "a", f"{i}")
        for i, number in enumerate(numbers)
    ]
    for record in records:
        os.utime(record.path, (1, 1))
    for _ in range(2):
        dataset = assemble(SETTINGS, records, ("a",), "here", absent=False)
        train, test = (set(part.patients) for part in (dataset.train, dataset.test))
        assert train | test == {hash_patient(f"P{number}") for number in numbers} and not train & test
    named = [replace(record, patient="same") for record in records[:6]] + records[6:]
    dataset = assemble(SETTINGS, named, ("a",), "here", absent=False)
    assert set(dataset.train.patients + dataset.test.patients) == {"same", hash_patient("P2"), hash_patient("P3")}
    both = [replace(record, split="train" if i else "test") for i, record in enumerate(records)]
    with pytest.raises(DataError, match="the same patient is in training and in the test") as caught:
        assemble(SETTINGS, both, ("a",), "here", absent=False)
    assert "P0" not in str(caught.value)
