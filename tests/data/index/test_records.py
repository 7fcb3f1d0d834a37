from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynammo_core.data.index.records import ImageRecord, assemble, refuse_empty_classes, seeded_split
from dynammo_core.support.errors import DataError


@given(st.lists(st.integers(0, 4), min_size=1, max_size=200))
def test_a_fifth_of_each_class_is_tested_on(labels: list[int]) -> None:
    test = seeded_split(np.array(labels), [str(i) for i in range(len(labels))])
    tested = Counter(label for label, chosen in zip(labels, test.tolist(), strict=True) if chosen)
    for label, count in Counter(labels).items():
        # at least one and never all; of a single image none can be taken
        assert tested[label] == min(max(round(0.2 * count), 1), count - 1)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 30)), min_size=1, max_size=100))
def test_equal_images_stay_on_one_side(images: list[tuple[int, int]]) -> None:
    labels, contents = zip(*images, strict=True)
    test = seeded_split(np.array(labels), [str(content) for content in contents])
    sides = {(content, chosen) for content, chosen in zip(contents, test.tolist(), strict=True)}
    assert len(sides) == len(set(contents))


def test_the_split_depends_on_the_order_and_not_on_the_keys() -> None:
    labels = np.repeat(np.arange(3), 20)
    ascending = seeded_split(labels, [f"{i:03d}" for i in range(60)])
    descending = seeded_split(labels, [f"{99 - i:03d}" for i in range(60)])
    assert (ascending == descending).all()


def test_the_split_is_drawn_and_not_a_block() -> None:
    test = np.flatnonzero(seeded_split(np.zeros(100, dtype=np.int64), [str(i) for i in range(100)]))
    assert len(test) == 20
    assert test[0] < 80 and test[-1] > 20


def test_the_same_bytes_in_train_and_test_are_named(tmp_path: Path, write_image: Callable[..., Path]) -> None:
    paths = [write_image(tmp_path / f"{i}.png", seed) for i, seed in enumerate([1, 2, 3, 1])]
    records = [
        ImageRecord(path, "a", path.name, place=f"row {i + 2}", split="train" if i < 2 else "test")
        for i, path in enumerate(paths)
    ]
    with pytest.raises(DataError, match=r"in train and in test, 1 in all.*0\.png \(row 2\).*3\.png \(row 5\)"):
        assemble(records, ("a",), "here", absent=False)
    assert len(assemble(records[:3], ("a",), "here", absent=False).test.labels) == 1


def test_a_label_outside_the_registry_is_named(tmp_path: Path) -> None:
    record = ImageRecord(tmp_path / "x.png", "melanona", "x", place="row 2")
    with pytest.raises(
        DataError, match=r"'melanona'.*x\.png \(row 2\).*did you mean 'melanoma'.*Accepted: naevus, melanoma"
    ):
        assemble([record], ("naevus", "melanoma"), "here", absent=False)


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
