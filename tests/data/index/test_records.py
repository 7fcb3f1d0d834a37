from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dynammo_core.configuration.settings import DataSettings
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
