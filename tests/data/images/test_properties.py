from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from dicom_files import NAME, write_dicom
from PIL import Image

from dynammo_core.data.images.decoding import decode_image
from dynammo_core.data.images.properties import ImageProperties, read_properties
from dynammo_core.support.errors import DataError

DEEP = np.zeros((4, 6), dtype=np.uint16)


@pytest.mark.parametrize(
    ("name", "mode", "options", "bits"),
    [
        ("a.png", "1", {}, 1),
        ("a.png", "P", {}, 1),
        ("a.png", "RGBA", {}, 8),
        ("a.jpg", "L", {}, 8),
        ("a.bmp", "RGB", {}, 8),
        ("a.webp", "RGB", {"lossless": True}, 8),
    ],
)
def test_pictures(tmp_path: Path, name: str, mode: str, options: dict[str, Any], bits: int) -> None:
    Image.new(mode, (6, 4)).save(tmp_path / name, **options)
    kind = {"a.png": "PNG", "a.jpg": "JPEG", "a.bmp": "BMP", "a.webp": "WEBP"}[name]
    assert read_properties(tmp_path / name) == ImageProperties(kind, 6, 4, bits, mode)


def test_what_is_turned_is_measured_as_it_is_seen(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("L", (6, 4)).save(tmp_path / "a.jpg", exif=exif)
    assert read_properties(tmp_path / "a.jpg") == ImageProperties("JPEG", 4, 6, 8, "L", orientation=6)
    tifffile.imwrite(tmp_path / "a.tif", DEEP, extratags=[(274, "H", 1, 6, True)], metadata=None)
    expected = ImageProperties("TIFF", 4, 6, 16, "MINISBLACK", orientation=6)
    assert read_properties(tmp_path / "a.tif") == expected


@pytest.mark.parametrize("entry", ["0001 00000001 06000000", "0002 00000002 36000000", "0003 00000001 000a0000"])
def test_a_damaged_orientation_is_upright_for_the_sheet_and_the_pixels(tmp_path: Path, entry: str) -> None:
    """A tag of another type, or of a number that means nothing, which readers take as they please."""
    path, exif = tmp_path / "a.jpg", b"MM\0*" + bytes.fromhex(f"00000008 0001 0112 {entry} 00000000")
    Image.new("L", (6, 4)).save(path, exif=b"Exif\0\0" + exif)
    with warnings.catch_warnings(record=True) as warned:
        assert read_properties(path) == ImageProperties("JPEG", 6, 4, 8, "L")
        assert decode_image(path).shape == (4, 6)
    assert warned == []


def test_depth_is_the_headers(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(np.dstack([DEEP] * 4)))
    assert read_properties(tmp_path / "a.png").bits == 16
    (tmp_path / "a.jp2").write_bytes(imagecodecs.jpeg2k_encode(DEEP, level=0, bitspersample=12))
    assert read_properties(tmp_path / "a.jp2").bits == 12
    (tmp_path / "a.pgm").write_bytes(b"P5 6 4 1023\n" + DEEP.tobytes())
    assert read_properties(tmp_path / "a.pgm").bits == 10


def test_frames_are_counted(tmp_path: Path) -> None:
    frames = [Image.new("L", (6, 4), value) for value in (0, 99)]
    for name in ("a.gif", "a.tif"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        assert read_properties(tmp_path / name).frames == 2


@pytest.mark.parametrize(("said", "meant"), [("YES", True), ("NO", False), (None, None)])
def test_burnt_in_annotation_is_told(tmp_path: Path, said: str | None, meant: bool | None) -> None:
    attributes = {} if said is None else {"BurnedInAnnotation": said}
    path = write_dicom(tmp_path / "a", DEEP, BitsStored=12, NumberOfFrames=1, **attributes)
    properties = read_properties(path)
    assert properties == ImageProperties("DICOM", 6, 4, 12, "MONOCHROME2", burnt_in=meant)
    assert NAME not in repr(properties)


def test_what_has_no_properties_is_refused_as_when_it_is_read(tmp_path: Path) -> None:
    write_dicom(tmp_path / "report.dcm", DEEP, Rows=None, PixelData=None)
    (tmp_path / "x.png").write_bytes(b"nothing")
    for name, said in (("report.dcm", "is DICOM without an image"), ("x.png", "cannot be read"), ("no", "cannot be")):
        with pytest.raises(DataError, match=said):
            read_properties(tmp_path / name)
