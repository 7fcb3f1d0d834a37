"""Which DICOM files hold an image, and how every other ends: in one sentence that names nobody."""

from __future__ import annotations

import logging
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicom_files import BIRTH_DATE, NAME, PATIENT_ID, dicom, write_dicom
from pydicom import Dataset, Sequence, dcmread
from pydicom.encaps import encapsulate
from pydicom.uid import (
    MPEG2MPML,
    UID,
    BasicTextSRStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLSLossless,
    RLELossless,
    RTDoseStorage,
    SegmentationStorage,
)

from dynammo_core.data.images.decoding import decode_image
from dynammo_core.data.images.dicom import hash_patient, patient_of
from dynammo_core.data.images.formats import is_image_file
from dynammo_core.data.images.reading import Reading
from dynammo_core.support.errors import DataError

WHOLE = Reading(window=(32768.0, 65536.0))  # 0..65535 becomes x / 257
DEEP = np.random.default_rng(0).integers(0, 65536, (16, 12), dtype=np.uint16)
COLOUR = np.random.default_rng(1).integers(0, 256, (16, 12, 3), dtype=np.uint8)


def refused(path: Path, reading: Reading | None = None) -> str:
    with pytest.raises(DataError) as caught:
        decode_image(path, reading or Reading())
    message = str(caught.value)
    assert message.startswith(f"the image {path} ") and "\n" not in message
    assert not [secret for secret in (NAME, PATIENT_ID, BIRTH_DATE) if secret in message]
    assert caught.value.__cause__ is None or caught.value.__cause__.__cause__ is None, "a cause may quote the header"
    return message


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_every_encoding_gives_the_same_pixels(tmp_path: Path, syntax: UID) -> None:
    path = tmp_path / "a.dcm"
    dataset = dicom(DEEP.byteswap() if syntax == ExplicitVRBigEndian else DEEP)
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.save_as(path, enforce_file_format=True)
    assert np.array_equal(decode_image(path, WHOLE), np.rint(DEEP / 257))


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless, JPEGLSLossless])
def test_compression_without_loss_gives_the_same_pixels(tmp_path: Path, syntax: UID) -> None:
    path = tmp_path / "a.dcm"
    compressed(path, DEEP, syntax)
    assert np.array_equal(decode_image(path, WHOLE), np.rint(DEEP / 257))


def compressed(path: Path, values: np.ndarray, syntax: UID) -> None:
    import imagecodecs

    dataset = dicom(values)
    if syntax == RLELossless:
        dataset.compress(RLELossless, encoding_plugin="pydicom")
    else:
        encode = {
            JPEG2000Lossless: lambda image: imagecodecs.jpeg2k_encode(image, level=0, codecformat="j2k"),
            JPEGLSLossless: imagecodecs.jpegls_encode,
        }[syntax]
        dataset.file_meta.TransferSyntaxUID = syntax
        dataset.PixelData = encapsulate([encode(values)])
        dataset["PixelData"].VR = "OB"
    dataset.save_as(path, enforce_file_format=True)


def test_colours_of_8_bits_are_taken_as_they_are(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a.dcm", COLOUR)
    assert np.array_equal(decode_image(path), COLOUR)
    planes = np.moveaxis(COLOUR, -1, 0)
    write_dicom(path, COLOUR, PlanarConfiguration=1, PixelData=planes.tobytes())
    assert np.array_equal(decode_image(path), COLOUR)
    assert np.array_equal(decode_image(path, Reading("lung")), COLOUR), "a window is for grey values"


def test_colours_of_more_bits_need_a_declared_window(tmp_path: Path) -> None:
    values = COLOUR.astype(np.uint16) * 257
    path = write_dicom(tmp_path / "a.dcm", values)
    assert np.array_equal(decode_image(path, WHOLE), COLOUR)
    assert "more than 8 bits a channel" in refused(path)
    assert "in Hounsfield units" in refused(path, Reading("lung"))
    write_dicom(path, values, PhotometricInterpretation="YBR_ICT")
    assert "has colours of 16 bits (YBR_ICT)" in refused(path, WHOLE)


@pytest.mark.parametrize(("signed", "grey"), [(False, 187), (True, 59)])
def test_jpeg_of_12_bits_is_read(tmp_path: Path, signed: bool, grey: int) -> None:
    """The stored 3000 is 3000 of 0..4095, or -1096 of -2048..2047."""
    path, values = tmp_path / "a.dcm", np.full((16, 8), 3000, dtype=np.uint16)
    extended_jpeg(path, values, PixelRepresentation=int(signed))
    assert (decode_image(path, Reading((0.0 if signed else 2048.0, 4096.0))) == grey).all()
    extended_jpeg(path, values, Rows=8)
    assert "JPEG of 12 bits of the shape (16, 8), and declares 8 x 8" in refused(path, WHOLE)
    extended_jpeg(path, b"\xff\xd8 no such stream")
    assert "cannot be decompressed here" in refused(path, WHOLE)


def extended_jpeg(path: Path, content: np.ndarray | bytes, **attributes: Any) -> None:
    import imagecodecs

    encoded = content if isinstance(content, bytes) else imagecodecs.jpeg8_encode(content, bitspersample=12)
    dataset = dicom(np.zeros((16, 8), dtype=np.uint16), BitsStored=12, HighBit=11, **attributes)
    dataset.file_meta.TransferSyntaxUID = JPEGExtended12Bit
    dataset.PixelData = encapsulate([encoded])
    dataset["PixelData"].VR = "OB"
    dataset.save_as(path, enforce_file_format=True)


def test_frames_that_are_not_declared_are_refused(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a.dcm", DEEP, PixelData=DEEP.tobytes() * 2)
    assert "holds 768 bytes of pixels and declares 384: it has more frames or rows" in refused(path, WHOLE)
    write_dicom(path, DEEP, PixelData=DEEP.tobytes() + bytes(100))  # filled up, as some scanners do
    assert np.array_equal(decode_image(path, WHOLE), np.rint(DEEP / 257))


def test_luminance_and_chrominance_become_rgb(tmp_path: Path) -> None:
    grey = np.full((4, 4), 90, dtype=np.uint8)
    values = np.dstack([grey, np.full_like(grey, 128), np.full_like(grey, 128)])
    image = decode_image(write_dicom(tmp_path / "a.dcm", values, PhotometricInterpretation="YBR_FULL"))
    assert (image == 90).all() and image.shape == (4, 4, 3)


@pytest.mark.parametrize(("bits", "scale"), [(8, 1), (16, 256), (16, 257)])
def test_palettes_become_rgb(tmp_path: Path, bits: int, scale: int) -> None:
    dataset = dicom(np.array([[0, 1, 2, 3, 9]], dtype=np.uint8), PhotometricInterpretation="PALETTE COLOR")
    for channel, entries in (("Red", (0, 10, 255, 7)), ("Green", (0, 20, 128, 8)), ("Blue", (0, 30, 1, 9))):
        table = (np.array(entries) * scale).astype(np.uint8 if bits == 8 else np.uint16)
        dataset.add_new(f"{channel}PaletteColorLookupTableDescriptor", "US", [4, 0, bits])
        dataset.add_new(f"{channel}PaletteColorLookupTableData", "OW", table.tobytes())
    dataset.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    # what lies beyond the table has its last entry
    assert decode_image(tmp_path / "a.dcm").tolist() == [[[0, 0, 0], [10, 20, 30], [255, 128, 1], [7, 8, 9], [7, 8, 9]]]


def test_several_frames_are_refused_unless_one_is_chosen(tmp_path: Path) -> None:
    frames = np.arange(3 * 4, dtype=np.uint8).reshape(3, 2, 2) * 20
    path = write_dicom(tmp_path / "a.dcm", frames[0], NumberOfFrames=3, PixelData=frames.tobytes())
    assert "has 3 frames or pages" in refused(path)
    assert np.array_equal(decode_image(path, Reading(frame=2)), decode_image_of(tmp_path, frames[1]))
    assert "asks for number 4" in refused(path, Reading(frame=4))


def decode_image_of(folder: Path, values: np.ndarray) -> np.ndarray:
    return decode_image(write_dicom(folder / "one.dcm", values))


@pytest.mark.parametrize("name", ["scan", "IM0001", "1.2.840.7", "a.dcm", "a.DCM", "photo.png"])
def test_dicom_is_known_by_its_content(tmp_path: Path, name: str) -> None:
    path = write_dicom(tmp_path / name, COLOUR)
    assert np.array_equal(decode_image(path), COLOUR)
    assert is_image_file(path)


def test_what_is_named_as_nothing_and_is_no_dicom_is_no_image(tmp_path: Path) -> None:
    for name, content in (("README", b"words"), ("LICENSE", b""), ("notes.txt", bytes(128) + b"DICM")):
        (tmp_path / name).write_bytes(content)
        assert not is_image_file(tmp_path / name)
    (tmp_path / "folder.png").mkdir()
    assert not is_image_file(tmp_path / "folder.png")


@pytest.mark.parametrize("implicit", [True, False])
def test_a_file_without_preamble_or_header_is_read(tmp_path: Path, implicit: bool) -> None:
    path = tmp_path / "bare"
    dataset = dicom(COLOUR)
    del dataset.file_meta
    dataset.save_as(path, implicit_vr=implicit, little_endian=True)
    assert np.array_equal(decode_image(path), COLOUR)
    assert is_image_file(path)


@pytest.mark.parametrize(
    ("attributes", "said"),
    [
        ({"PixelData": None}, "holds no pixel data: CT Image Storage"),
        ({"PixelData": b""}, "holds no pixel data: CT Image Storage"),
        ({"Rows": None, "PixelData": None, "SOPClassUID": BasicTextSRStorage}, "without an image: Basic Text SR"),
        ({"SOPClassUID": RTDoseStorage}, "no picture: RT Dose Storage"),
        ({"SOPClassUID": SegmentationStorage}, "no picture: Segmentation Storage"),
        ({"Rows": None, "SOPClassUID": "1.2.3.4711"}, "without an image: a class that the standard does not name"),
        ({"PhotometricInterpretation": "CMYK"}, "photometric interpretation that is not read"),
        ({"PhotometricInterpretation": "RGB"}, "has colours of 16 bits (RGB)"),
        ({"Rows": 60_000, "Columns": 60_000}, "has 60000 x 60000 pixels"),
        ({"Rows": 0}, "has 12 x 0 pixels"),
        ({"Rows": 17}, "damaged DICOM, cut off"),
        ({"HighBit": 11}, "in other bits than the lowest"),
        ({"BitsAllocated": None}, "damaged DICOM"),
    ],
)
def test_what_is_no_image_ends_in_a_sentence(tmp_path: Path, attributes: dict[str, Any], said: str) -> None:
    assert said in refused(write_dicom(tmp_path / "a.dcm", DEEP, **attributes), WHOLE)


def test_an_unknown_or_damaged_compression_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.dcm"
    for syntax, name in (
        (MPEG2MPML, "MPEG2 Main Profile"),
        (JPEGBaseline8Bit, "JPEG Baseline"),
        (UID("1.2.3.4"), "a way that the standard does not name"),
    ):
        dataset = dicom(COLOUR)
        dataset.file_meta.TransferSyntaxUID = syntax
        dataset.PixelData = encapsulate([b"\xff\xd8 no such stream"])
        dataset["PixelData"].VR = "OB"
        dataset.save_as(path, enforce_file_format=True, implicit_vr=False, little_endian=True)
        message = refused(path)
        assert "cannot be decompressed here" in message and name in message and "1.2.3.4" not in message


def test_every_cut_ends_in_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "a.dcm"
    for write in (lambda: write_dicom(path, DEEP), lambda: compressed(path, DEEP, RLELossless)):
        write()
        content = path.read_bytes()
        for size in range(0, len(content) - 2, 13):
            path.write_bytes(content[:size])
            refused(path, WHOLE)


def test_any_bytes_end_in_a_sentence(tmp_path: Path) -> None:
    path, noise = tmp_path / "a.dcm", np.random.default_rng(0)
    whole = write_dicom(path, DEEP).read_bytes()
    for _ in range(60):
        content = bytearray(whole)
        for place in noise.integers(132, len(content) - DEEP.nbytes, 8).tolist():
            content[place] = int(noise.integers(256))
        path.write_bytes(bytes(content))
        try:
            assert decode_image(path, WHOLE).dtype == np.uint8
        except DataError:
            refused(path, WHOLE)


def test_nothing_of_the_header_is_logged_or_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.dcm"
    dataset = dicom(DEEP)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is written here is invalid on purpose
        dataset.PatientID = PATIENT_ID * 20
        dataset.StudyInstanceUID = f"1.02.{PATIENT_ID}"
        dataset.save_as(path, enforce_file_format=True)
    content = path.read_bytes()
    caplog.set_level(logging.DEBUG)
    program = (
        "import sys, logging; logging.basicConfig(level=logging.DEBUG); from pathlib import Path; "
        "from dynammo_core.data.images.decoding import decode_image; "
        "from dynammo_core.data.images.reading import Reading; "
        "decode_image(Path(sys.argv[1]), Reading((32768.0, 65536.0)))"
    )
    for cut in (len(content), len(content) - 100):
        path.write_bytes(content[:cut])
        done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True)
        assert PATIENT_ID not in done.stdout + done.stderr
        assert (done.returncode == 0) == (cut == len(content))


def test_patients_are_told_apart_and_never_named(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a.dcm", COLOUR)
    patient = patient_of(path)
    assert patient == hash_patient(f" {PATIENT_ID} ") and len(patient) == 64 and PATIENT_ID not in patient
    assert patient != patient_of(write_dicom(tmp_path / "b.dcm", COLOUR, PatientID="MRN-4712"))
    assert patient_of(write_dicom(tmp_path / "c.dcm", COLOUR, PatientID="")) is None
    assert patient_of(write_dicom(tmp_path / "d.dcm", COLOUR, PatientID=None)) is None
    (tmp_path / "e.dcm").write_bytes(b"broken")
    assert patient_of(tmp_path / "e.dcm") is None


def test_without_pydicom_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_dicom(tmp_path / "a.dcm", COLOUR)
    monkeypatch.setitem(sys.modules, "pydicom", None)  # as if it were not installed
    assert "no pydicom to read it. Install the extra `dicom`: pip install '.[dicom]'" in refused(path)


def test_the_files_that_tests_write_are_dicom(tmp_path: Path) -> None:
    written = dcmread(write_dicom(tmp_path / "a.dcm", DEEP))
    assert isinstance(written, Dataset) and np.array_equal(written.pixel_array, DEEP)
    assert isinstance(dicom(DEEP, SharedFunctionalGroupsSequence=Sequence([Dataset()])), Dataset)
