"""Grey values of DICOM, each step against the formula of PS3.3, C.11, written out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicom_files import lookup_table, write_dicom
from pydicom import Dataset, Sequence

from dynammo_core.data.images.decoding import decode_image
from dynammo_core.data.images.reading import Reading
from dynammo_core.support.errors import DataError

LEVELS = np.array([[0, 1, 500, 1024, 1063, 1064, 1065, 2000, 4095]], dtype=np.uint16)


def shown(folder: Path, values: np.ndarray = LEVELS, reading: Reading | None = None, **attributes: Any) -> np.ndarray:
    return decode_image(write_dicom(folder / "a.dcm", values, **attributes), reading or Reading())


def refused(folder: Path, values: np.ndarray = LEVELS, reading: Reading | None = None, **attributes: Any) -> str:
    with pytest.raises(DataError) as caught:
        shown(folder, values, reading, **attributes)
    return str(caught.value)


def linear(x: float, centre: float, width: float) -> int:
    """C.11.2.1.2.1, with ymin = 0 and ymax = 255."""
    if x <= centre - 0.5 - (width - 1) / 2:
        return 0
    if x > centre - 0.5 + (width - 1) / 2:
        return 255
    return round(((x - (centre - 0.5)) / (width - 1) + 0.5) * 255)


def exact(x: float, centre: float, width: float) -> int:
    """C.11.2.1.3.2."""
    if x <= centre - width / 2:
        return 0
    return 255 if x > centre + width / 2 else round(((x - centre) / width + 0.5) * 255)


def sigmoid(x: float, centre: float, width: float) -> int:
    """C.11.2.1.3.1."""
    return round(255 / (1 + np.exp(-4 * (x - centre) / width)))


FUNCTIONS = {"LINEAR": linear, "LINEAR_EXACT": exact, "SIGMOID": sigmoid}
HU = {"RescaleSlope": "1", "RescaleIntercept": "-1024", "RescaleType": "HU"}
WINDOW = {"WindowCenter": "40", "WindowWidth": "400"}


@pytest.mark.parametrize("function", FUNCTIONS)
def test_the_files_window_is_applied_by_the_function_it_names(tmp_path: Path, function: str) -> None:
    expected = [FUNCTIONS[function](x - 1024, 40, 400) for x in LEVELS[0].tolist()]
    assert shown(tmp_path, **HU, **WINDOW, VOILUTFunction=function).tolist() == [expected]


def test_a_window_without_a_function_is_linear(tmp_path: Path) -> None:
    assert shown(tmp_path, **HU, **WINDOW).tolist() == [[linear(x - 1024, 40, 400) for x in LEVELS[0].tolist()]]


def test_of_several_windows_the_first_counts(tmp_path: Path) -> None:
    several = shown(tmp_path, **HU, WindowCenter=["40", "-600"], WindowWidth=["400", "1500"])
    assert np.array_equal(several, shown(tmp_path, **HU, **WINDOW))


@pytest.mark.parametrize(
    ("slope", "intercept"),
    [("1", "-1024"), ("1.0", "-1024.0"), ("001.000000E+00", "-01.024000E+03"), (" 1 ", "-1024 ")],
)
def test_every_spelling_of_a_number_is_the_number(tmp_path: Path, slope: str, intercept: str) -> None:
    spelt = shown(tmp_path, **WINDOW, RescaleSlope=slope, RescaleIntercept=intercept)
    assert np.array_equal(spelt, shown(tmp_path, **HU, **WINDOW))


def test_slopes_and_intercepts_stand_alone_too(tmp_path: Path) -> None:
    half = shown(tmp_path, **WINDOW, RescaleSlope="0.5")
    assert half.tolist() == [[linear(x / 2, 40, 400) for x in LEVELS[0].tolist()]]
    shifted = shown(tmp_path, **WINDOW, RescaleIntercept="-1024")
    assert np.array_equal(shifted, shown(tmp_path, **HU, **WINDOW))


def test_the_declared_window_goes_before_the_files_own(tmp_path: Path) -> None:
    expected = [linear(x - 1024, -600, 1500) for x in LEVELS[0].tolist()]
    for reading in (Reading((-600.0, 1500.0)), Reading("lung")):
        image = shown(tmp_path, reading=reading, **HU, **WINDOW, VOILUTFunction="SIGMOID")
        assert image.tolist() == [expected]


def test_a_named_window_is_for_hounsfield_units(tmp_path: Path) -> None:
    lung = Reading("lung")
    for other in ({"Modality": "MR", "RescaleIntercept": "0"}, {"RescaleType": "US", "RescaleIntercept": "0"}, {}):
        assert "does not say that it is CT in Hounsfield units" in refused(tmp_path, reading=lung, **other)
    assert np.array_equal(
        shown(tmp_path, reading=lung, RescaleIntercept="-1024"), shown(tmp_path, reading=lung, **HU, Modality="PT")
    )


def test_deep_files_without_a_window_are_refused(tmp_path: Path) -> None:
    assert "has 12 bits and declares neither a window nor a VOI LUT" in refused(tmp_path, BitsStored=12)


def test_8_bits_without_a_window_are_shown_as_stored(tmp_path: Path) -> None:
    values = np.array([[0, 3, 15]], dtype=np.uint8)
    assert shown(tmp_path, values).tolist() == [[0, 3, 15]]
    assert shown(tmp_path, values, BitsStored=4).tolist() == [[0, 51, 255]]
    assert "declares neither" in refused(tmp_path, values, RescaleSlope="2")
    assert "declares neither" in refused(tmp_path, values.astype(np.int8))


def test_signed_values_are_signed(tmp_path: Path) -> None:
    values = np.array([[-1024, -160, 0, 40, 239, 2047]], dtype=np.int16)
    expected = [[linear(x, 40, 400) for x in values[0].tolist()]]
    assert shown(tmp_path, values, **WINDOW).tolist() == expected
    twelve = (values.astype(np.int64) & 0xFFF).astype(np.uint16)  # two's complement in 12 of 16 bits
    assert shown(tmp_path, twelve, **WINDOW, BitsStored=12, PixelRepresentation=1).tolist() == expected


def test_bits_above_those_stored_are_an_overlay(tmp_path: Path) -> None:
    drawn = LEVELS | np.uint16(0xF000)
    assert np.array_equal(shown(tmp_path, drawn, **HU, **WINDOW, BitsStored=12), shown(tmp_path, **HU, **WINDOW))


def test_monochrome1_is_turned_over_after_the_window(tmp_path: Path) -> None:
    turned = shown(tmp_path, **HU, **WINDOW, PhotometricInterpretation="MONOCHROME1")
    assert np.array_equal(turned, 255 - shown(tmp_path, **HU, **WINDOW))


@pytest.mark.parametrize("meaning", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black(tmp_path: Path, meaning: str) -> None:
    values = np.array([[-2000, -1999, 0, 40]], dtype=np.int16)
    image = shown(tmp_path, values, **WINDOW, PixelPaddingValue=-2000, PhotometricInterpretation=meaning)
    plain = shown(tmp_path, values, **WINDOW, PhotometricInterpretation=meaning)
    assert image[0, 0] == 0 and np.array_equal(image[0, 1:], plain[0, 1:])
    ranged = {"PixelPaddingValue": -2000, "PixelPaddingRangeLimit": -1500}
    assert shown(tmp_path, values, **WINDOW, **ranged, PhotometricInterpretation=meaning)[0, :2].tolist() == [0, 0]


def test_a_modality_table_goes_before_the_window(tmp_path: Path) -> None:
    # 10 and below give the first entry, 12 and above the last
    values = np.array([[0, 10, 11, 12, 300]], dtype=np.uint16)
    table = {"ModalityLUTSequence": lookup_table(10, [0, 40, 3000])}
    assert shown(tmp_path, values, **table, **WINDOW).tolist() == [[linear(x, 40, 400) for x in (0, 0, 40, 3000, 3000)]]


@pytest.mark.parametrize("first", [10, -1014])
def test_a_table_of_values_of_interest_goes_before_the_files_window(tmp_path: Path, first: int) -> None:
    values = np.array([[0, 10, 11, 12, 300]], dtype=np.uint16)
    rescale = {"RescaleIntercept": "-1024"} if first < 0 else {}
    table = {"VOILUTSequence": lookup_table(first, [0, 1000, 4095], bits=12)}
    # 1000 * 255 / 4095 = 62.3
    assert shown(tmp_path, values, **table, **rescale, **WINDOW).tolist() == [[0, 0, 62, 255, 255]]


def test_frames_have_values_of_their_own(tmp_path: Path) -> None:
    def group(intercept: str, centre: str) -> Dataset:
        transformation, window, frame = Dataset(), Dataset(), Dataset()
        transformation.RescaleSlope, transformation.RescaleIntercept = "1", intercept
        window.WindowCenter, window.WindowWidth = centre, "400"
        frame.PixelValueTransformationSequence = Sequence([transformation])
        frame.FrameVOILUTSequence = Sequence([window])
        return frame

    attributes = {
        "NumberOfFrames": 2,
        "PixelData": LEVELS.tobytes() * 2,
        "PerFrameFunctionalGroupsSequence": Sequence([group("-1024", "40"), group("0", "900")]),
    }
    for frame, (intercept, centre) in enumerate(((-1024, 40), (0, 900)), start=1):
        image = shown(tmp_path, reading=Reading(frame=frame), **attributes)
        assert image.tolist() == [[linear(x + intercept, centre, 400) for x in LEVELS[0].tolist()]]


@pytest.mark.parametrize(
    ("attributes", "said"),
    [
        ({"WindowCenter": "40", "WindowWidth": "0"}, "window of width 0"),
        ({**WINDOW, "VOILUTFunction": "CUBIC"}, "unknown"),
        ({**WINDOW, "RescaleSlope": "0"}, "RescaleSlope of 0"),
        ({"VOILUTSequence": lookup_table(0, [7, 8], declared=9)}, "shorter than it declares"),
    ],
)
def test_what_cannot_be_followed_is_refused(tmp_path: Path, attributes: dict[str, Any], said: str) -> None:
    assert said in refused(tmp_path, **attributes)


def test_a_number_with_a_comma_is_no_number(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a.dcm", LEVELS, **WINDOW, RescaleSlope="1.0", RescaleIntercept="-1024")
    path.write_bytes(path.read_bytes().replace(b"1.0 ", b"1,0 "))
    with pytest.raises(DataError, match="a RescaleSlope that is no number"):
        decode_image(path)
