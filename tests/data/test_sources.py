from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dynammo_core.data.samples import Split
from dynammo_core.data.sources import ArraySource, FileSource, Selection, array_keys, chain, decode_image, select
from dynammo_core.support.errors import DataError


@pytest.mark.parametrize(
    ("mode", "shape"),
    [("1", (5, 7)), ("L", (5, 7)), ("LA", (5, 7)), ("RGB", (5, 7, 3)), ("RGBA", (5, 7, 3)), ("P", (5, 7, 3))],
)
def test_grey_stays_grey_and_the_rest_becomes_rgb(tmp_path: Path, mode: str, shape: tuple[int, ...]) -> None:
    path = tmp_path / "image.png"
    Image.new("L", (7, 5), 255).convert(mode).save(path)
    image = decode_image(path)
    assert image.dtype == np.uint8
    assert image.shape == shape
    assert (image == 255).all()


def test_pixels_of_more_than_8_bits_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "ct.png"
    Image.fromarray(np.full((4, 4), 3000, dtype=np.uint16)).save(path)
    with pytest.raises(DataError, match=r"ct\.png.*more than 8 bits.*intensity window"):
        decode_image(path)


def test_a_truncated_image_is_named_with_its_row(tmp_path: Path, write_image: Callable[..., Path]) -> None:
    path = write_image(tmp_path / "cut.jpg", 0, size=(64, 64))
    path.write_bytes(path.read_bytes()[:-600])
    source = FileSource((path,), ("row 7 of scans.csv",))
    with pytest.raises(DataError, match=r"cut\.jpg \(row 7 of scans\.csv\) cannot be read"):
        source.read(0)


@pytest.mark.parametrize("content", [b"", b"no image at all", b"\x89PNG\r\n\x1a\n" + bytes(40)])
def test_what_is_no_image_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"x\.png cannot be read"):
        decode_image(path)


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
