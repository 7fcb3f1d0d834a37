"""More than 8 bits in PNG, TIFF, PNM and JPEG 2000: by the header, with a declared window, exactly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from dynammo_core.data.images.decoding import decode_image
from dynammo_core.data.images.reading import Reading
from dynammo_core.support.errors import DataError

WHOLE = Reading(window=(32768.0, 65536.0))  # 0..65535 becomes x * 255 / 65535: x / 257
CT = Reading(window=(40.0, 400.0))
GREY = np.array([[0, 257, 1000], [65535, 40000, 128]], dtype=np.uint16)
COLOUR = np.stack([GREY, GREY[::-1], GREY[:, ::-1]], axis=-1)
ALPHA = np.array([[0, 65535, 32768], [65535, 1000, 65535]], dtype=np.uint16)


def shown(values: np.ndarray) -> np.ndarray:
    return np.rint(values / 257).astype(np.uint8)


def png(path: Path, values: np.ndarray) -> None:
    path.write_bytes(imagecodecs.png_encode(np.ascontiguousarray(values)))


def tiff(path: Path, values: np.ndarray, **options: Any) -> None:
    tifffile.imwrite(path, values, metadata=None, **options)


def jpeg2000(path: Path, values: np.ndarray) -> None:
    path.write_bytes(imagecodecs.jpeg2k_encode(np.ascontiguousarray(values), level=0))


def pnm(path: Path, values: np.ndarray) -> None:
    header = f"P{6 if values.ndim == 3 else 5}\n# a comment\n{values.shape[1]} {values.shape[0]}\n65535\n"
    path.write_bytes(header.encode() + values.astype(">u2").tobytes())


@pytest.mark.parametrize("write", [png, tiff, jpeg2000, pnm])
@pytest.mark.parametrize("values", [GREY, COLOUR], ids=["grey", "colour"])
def test_16_bits_are_windowed_and_never_cut(
    tmp_path: Path, write: Callable[[Path, np.ndarray], None], values: np.ndarray
) -> None:
    path = tmp_path / "deep.png"  # the content decides of the format
    write(path, values)
    assert np.array_equal(decode_image(path, WHOLE), shown(values))
    with pytest.raises(DataError, match=r"deep\.png has more than 8 bits.*Set data\.window to \[centre, width\]"):
        decode_image(path)


@pytest.mark.parametrize("values", [GREY, COLOUR], ids=["grey", "colour"])
@pytest.mark.parametrize("write", [png, tiff])
def test_16_bits_with_alpha_lie_over_black(tmp_path: Path, write: Callable[..., None], values: np.ndarray) -> None:
    path = tmp_path / "deep"
    options: dict[str, Any] = {}
    if write is tiff:
        options = {"photometric": "rgb" if values.ndim == 3 else "minisblack", "extrasamples": ["unassalpha"]}
    write(path, np.dstack([values, ALPHA]), **({**options, "planarconfig": "contig"} if options else {}))
    opacity = ALPHA if values.ndim == 2 else ALPHA[..., None]
    assert np.array_equal(decode_image(path, WHOLE), np.rint(shown(values) * (opacity / 65535)).astype(np.uint8))


@pytest.mark.parametrize("compression", [None, "zlib", "lzw", "packbits"])
@pytest.mark.parametrize(
    "options",
    [{}, {"bigtiff": True}, {"byteorder": ">"}, {"tile": (16, 16)}, {"predictor": True}],
    ids=["plain", "BigTIFF", "big endian", "tiled", "predictor"],
)
@pytest.mark.parametrize("colour", ["grey", "contiguous", "planar"])
def test_every_layout_of_tiff_gives_the_same_pixels(
    tmp_path: Path, colour: str, options: dict[str, Any], compression: str | None
) -> None:
    if "predictor" in options and compression not in ("zlib", "lzw"):
        pytest.skip("a predictor belongs to a compression")
    path = tmp_path / "deep.tif"
    values = np.random.default_rng(0).integers(0, 65536, (33, 20, 3), dtype=np.uint16)
    expected = shown(values if colour != "grey" else values[..., 0])
    if colour == "grey":
        tiff(path, values[..., 0], compression=compression, **options)
    elif colour == "contiguous":
        tiff(path, values, photometric="rgb", compression=compression, **options)
    else:
        planes = np.moveaxis(values, -1, 0)
        tiff(path, planes, photometric="rgb", planarconfig="separate", compression=compression, **options)
    assert np.array_equal(decode_image(path, WHOLE), expected)


def test_signed_values_are_windowed_by_dicoms_formula(tmp_path: Path) -> None:
    path = tmp_path / "ct.tif"
    tiff(path, np.array([[-1000, -160, -159, 40, 239, 240, 3000]], dtype=np.int16))
    # c - 0.5 - (w - 1) / 2 = -160 and ... + ... = 239; between: ((x - 39.5) / 399 + 0.5) * 255
    expected = [0, 0, round(((-159 - 39.5) / 399 + 0.5) * 255), round((0.5 / 399 + 0.5) * 255), 255, 255, 255]
    assert decode_image(path, CT).tolist() == [expected]
    assert np.array_equal(decode_image(path, Reading("soft_tissue")), decode_image(path, Reading((50.0, 400.0))))


def test_a_named_window_is_not_for_values_without_a_sign(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    png(path, GREY)
    with pytest.raises(DataError, match=r"data\.window is lung, which is in Hounsfield units"):
        decode_image(path, Reading("lung"))


def test_floats_are_windowed_without_half_units(tmp_path: Path) -> None:
    path = tmp_path / "map.tif"
    tiff(path, np.array([[-1.0, 0.0, 0.25, 0.5, 1.0, 7.0]], dtype=np.float32))
    assert decode_image(path, Reading((0.5, 1.0))).tolist() == [[0, 0, 64, 128, 255, 255]]  # 63.75 and 127.5, to even
    tiff(path, np.array([[0.0, np.nan]], dtype=np.float32))
    with pytest.raises(DataError, match="not finite"):
        decode_image(path, Reading((0.5, 1.0)))


def test_where_white_is_zero_the_window_comes_first(tmp_path: Path) -> None:
    path = tmp_path / "film.tif"
    tiff(path, GREY, photometric="miniswhite")
    assert np.array_equal(decode_image(path, WHOLE), 255 - shown(GREY))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_of_deep_files_is_applied_as_that_of_others(tmp_path: Path, orientation: int) -> None:
    deep, flat = tmp_path / "deep.tif", tmp_path / "flat.tif"
    tag = [(274, "H", 1, orientation, True)]
    tiff(deep, COLOUR, photometric="rgb", extratags=tag)
    tiff(flat, shown(COLOUR), photometric="rgb", extratags=tag)
    assert np.array_equal(decode_image(deep, WHOLE), decode_image(flat))


@pytest.mark.parametrize("write", [png, tiff, jpeg2000, pnm])
def test_a_truncated_file_is_refused(tmp_path: Path, write: Callable[[Path, np.ndarray], None]) -> None:
    path = tmp_path / "cut"
    write(path, np.random.default_rng(0).integers(0, 65536, (40, 40), dtype=np.uint16))
    content = path.read_bytes()
    for size in range(12, len(content) - len(content) // 50, len(content) // 23):
        path.write_bytes(content[:size])
        with pytest.raises(DataError, match="cannot be read"):
            decode_image(path, WHOLE)


def test_a_window_narrower_than_a_step_maps_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    png(path, GREY)
    with pytest.raises(DataError, match=r"window of width 0\.5"):
        decode_image(path, Reading((40.0, 0.5)))


def test_8_bits_need_no_window_and_ignore_one(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    Image.fromarray(np.array([[0, 99, 255]], dtype=np.uint8)).save(path)
    assert decode_image(path, CT).tolist() == [[0, 99, 255]]


def test_channels_without_a_meaning_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "bands.tif"
    for depth in (np.uint8, np.uint16):
        tiff(path, np.zeros((4, 4, 5), dtype=depth), photometric="minisblack", planarconfig="contig")
        with pytest.raises(DataError, match="5 channels and does not say what each of them is"):
            decode_image(path, WHOLE)


@pytest.mark.parametrize("kind", [np.int8, np.int16, np.uint32, np.int32, np.float16, np.float64])
def test_every_kind_of_number_goes_through_the_window(tmp_path: Path, kind: type[np.generic]) -> None:
    path = tmp_path / "x.tif"
    values = np.array([[0, 40, 90, 120]]).astype(kind)
    tiff(path, values)
    half = 0.0 if np.issubdtype(kind, np.floating) else 0.5
    width = 101.0 - 2 * half  # the line has the same slope for whole numbers and for others
    slope = width if half == 0 else width - 1
    line = np.clip(((values.astype(float) - (60 - half)) / slope + 0.5) * 255, 0, 255)
    assert np.array_equal(decode_image(path, Reading((60.0, width))), np.rint(line))
    with pytest.raises(DataError, match=r"Set data\.window"):
        decode_image(path)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"photometric": "separated", "extrasamples": []}, "of the kind SEPARATED"),
        ({"photometric": "rgb", "extrasamples": ["assocalpha"]}, "multiplied by alpha already"),
    ],
)
def test_what_a_window_cannot_fit_is_refused(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    path = tmp_path / "x.tif"
    tiff(path, np.zeros((4, 4, 4), dtype=np.uint16), planarconfig="contig", **options)
    with pytest.raises(DataError, match=said):
        decode_image(path, WHOLE)


def test_complex_values_are_no_image(tmp_path: Path) -> None:
    tiff(tmp_path / "k-space.tif", np.zeros((4, 4), dtype=np.complex64))
    with pytest.raises(DataError, match="no plain numbers"):
        decode_image(tmp_path / "k-space.tif", WHOLE)


def test_jpeg_of_more_than_8_bits_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    path.write_bytes(imagecodecs.jpeg8_encode(np.zeros((8, 8), dtype=np.uint16), bitspersample=12))
    with pytest.raises(DataError, match=r"is JPEG of a kind that is not read.*not of 12 bits.*Save it as PNG or TIFF"):
        decode_image(path, WHOLE)


def test_12_bits_in_a_file_are_12_bits(tmp_path: Path) -> None:
    path = tmp_path / "x.jp2"
    values = np.array([[0, 1000, 4095]], dtype=np.uint16)
    path.write_bytes(imagecodecs.jpeg2k_encode(values, level=0, bitspersample=12))
    assert decode_image(path, Reading((2048.0, 4096.0))).tolist() == [[0, 62, 255]]  # 1000 * 255 / 4095 = 62.3
