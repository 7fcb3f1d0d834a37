from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dynammo_core.data.images.reading import Reading
from dynammo_core.data.samples import Split
from dynammo_core.data.sources import ArraySource, FileSource, Selection, array_keys, chain, read_as, select
from dynammo_core.support.errors import DataError


def test_a_truncated_image_is_named_with_its_row(tmp_path: Path, write_image: Callable[..., Path]) -> None:
    path = write_image(tmp_path / "cut.jpg", 0, size=(64, 64))
    path.write_bytes(path.read_bytes()[:-600])
    source = FileSource((path,), ("row 7 of scans.csv",))
    with pytest.raises(DataError, match=r"cut\.jpg \(row 7 of scans\.csv\) cannot be read"):
        source.read(0)


def test_selections_of_selections_read_the_right_images() -> None:
    images = np.arange(10, dtype=np.uint8)[:, None, None]
    whole = Split(ArraySource(images), np.arange(10), tuple("abcdefghij"), tuple("0123456789"))
    part = select(select(whole, np.array([7, 2, 9, 4])), np.array([3, 0]))
    # position 3 of the first selection is image 4, position 0 is image 7
    assert [int(part.source.read(i)[0, 0]) for i in range(len(part.source))] == [4, 7]
    assert part.labels.tolist() == [4, 7]
    assert part.record_ids == ("e", "h")
    assert part.sites == ("4", "7")
    assert isinstance(part.source, Selection)
    assert isinstance(part.source.source, ArraySource)


def test_array_keys_are_equal_exactly_where_the_pixels_are() -> None:
    images = np.zeros((3, 2, 2), dtype=np.uint8)
    images[1, 0, 0] = 1
    keys = array_keys(images)
    assert keys[0] == keys[2] != keys[1]


def test_two_parts_of_one_source_become_one_again() -> None:
    whole = Split(
        ArraySource(np.arange(6, dtype=np.uint8)[:, None, None]),
        np.arange(6),
        tuple("abcdef"),
        contents=tuple("uvwxyz"),
    )
    both = chain(select(whole, np.array([5, 1])), select(whole, np.array([2])))
    assert [int(both.source.read(i)[0, 0]) for i in range(3)] == both.labels.tolist() == [5, 1, 2]
    assert (both.record_ids, both.contents) == (("f", "b", "c"), ("z", "v", "w"))
    with pytest.raises(ValueError, match="one source"):
        chain(whole, Split(ArraySource(np.zeros((1, 1, 1), np.uint8)), np.zeros(1, np.int64), ("g",)))


def test_a_reading_reaches_the_files_beneath_selections_and_leaves_arrays(tmp_path: Path) -> None:
    files = Split(FileSource((tmp_path / "a", tmp_path / "b"), ("", "")), np.arange(2), ("a", "b"))
    reading = Reading(window=(40.0, 400.0), frame=2)
    part = read_as(select(files, np.array([1])), reading)
    assert isinstance(part.source, Selection) and isinstance(part.source.source, FileSource)
    assert part.source.source.reading == reading and part.record_ids == ("b",)
    arrays = Split(ArraySource(np.zeros((2, 1, 1), dtype=np.uint8)), np.arange(2), ("a", "b"))
    assert read_as(arrays, reading).source is arrays.source
