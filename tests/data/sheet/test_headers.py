"""What headers say of files that the tests write: depth, colour, transparency, frames, turns, and what is no image."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pydicom
import pytest
import tifffile
from PIL import ExifTags, Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from dynammo_core.data.sheet.headers import Header, read_header

GREY = np.arange(12 * 20, dtype=np.uint8).reshape(12, 20)
DEEP = np.arange(12 * 20, dtype=np.uint16).reshape(12, 20) * 200
COLOUR = np.stack([GREY] * 3, axis=-1)
Save = Callable[[Path], Any]


def rotated(path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.fromarray(COLOUR).save(path, "JPEG", exif=exif)


def animated(path: Path) -> None:
    pages = [Image.fromarray(GREY), Image.fromarray(GREY[::-1].copy())]
    pages[0].save(path, "GIF", save_all=True, append_images=pages[1:])


def dicom(path: Path, **tags: Any) -> None:
    dataset = FileDataset(str(path), {}, preamble=b"\0" * 128)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = CTImageStorage
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = 12, 20, 1
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.PhotometricInterpretation, dataset.PixelData = "MONOCHROME2", DEEP.tobytes()
    for name, value in tags.items():
        setattr(dataset, name, value)
    pydicom.dcmwrite(path, dataset)


@pytest.mark.parametrize(
    ("save", "header"),
    [
        (lambda path: Image.fromarray(GREY).save(path, "PNG"), Header("PNG", 20, 12, 8, "grey")),
        (lambda path: Image.fromarray(COLOUR).save(path, "JPEG"), Header("JPEG", 20, 12, 8, "colour")),
        (lambda path: path.write_bytes(imagecodecs.png_encode(DEEP)), Header("PNG", 20, 12, 16, "grey")),
        (
            lambda path: path.write_bytes(imagecodecs.png_encode(np.stack([DEEP] * 3, axis=-1))),
            Header("PNG", 20, 12, 16, "colour"),  # Pillow calls this RGB of 8 bits
        ),
        (lambda path: path.write_bytes(imagecodecs.jpeg2k_encode(DEEP)), Header("JPEG2000", 20, 12, 16, "grey")),
        (lambda path: path.write_bytes(b"P5 20 12 4095\n" + DEEP.tobytes()), Header("PPM", 20, 12, 12, "grey")),
        (lambda path: tifffile.imwrite(path, DEEP), Header("TIFF", 20, 12, 16, "grey")),
        (
            lambda path: Image.fromarray(COLOUR).convert("RGBA").save(path, "PNG"),
            Header("PNG", 20, 12, 8, "colour", transparent=True),
        ),
        (rotated, Header("JPEG", 20, 12, 8, "colour", turned=True)),
        (animated, Header("GIF", 20, 12, 8, "grey", frames=2)),
        (dicom, Header("DICOM", 20, 12, 12, "grey")),
        (lambda path: dicom(path, BurnedInAnnotation="YES"), Header("DICOM", 20, 12, 12, "grey", burnt_in=True)),
        (lambda path: dicom(path, BurnedInAnnotation="NO"), Header("DICOM", 20, 12, 12, "grey", burnt_in=False)),
    ],
)
def test_headers(tmp_path: Path, save: Save, header: Header) -> None:
    save(tmp_path / "image")
    found = read_header(tmp_path / "image")
    # of a GIF, Pillow tells grey from colour only once it is decoded
    assert found == header or (header.format == "GIF" and found == Header("GIF", 20, 12, 8, "colour", frames=2))


@pytest.mark.parametrize("content", [b"", b"smith, john", b"\x89PNG\r\n\x1a\n", b"II*\0\0\0", b"\0" * 128 + b"DICM\2"])
def test_what_is_no_image_has_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.png").write_bytes(content)
    assert read_header(tmp_path / "a.png") is None
    assert read_header(tmp_path / "nowhere.png") is None


def test_nothing_of_a_dicom_header_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dicom(tmp_path / "a.dcm", PatientName="Smith^John", SpecificCharacterSet="SMITH", NumberOfFrames="1")
    with caplog.at_level(logging.DEBUG), warnings.catch_warnings(record=True) as said:
        assert read_header(tmp_path / "a.dcm") is not None
    assert [str(one.message) for one in said] + [one.getMessage() for one in caplog.records] == []
