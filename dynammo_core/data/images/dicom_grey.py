"""Grey values of DICOM to 8 bits: modality LUT or rescaling, VOI LUT or window, MONOCHROME1, padding (PS3.3, C.11)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from dynammo_core.data.images.reading import FROM_FILE, WINDOWS, Reading
from dynammo_core.data.images.refusal import ImageRefusal
from dynammo_core.data.images.windows import Function, apply_window, by_table

if TYPE_CHECKING:
    from pydicom import Dataset

HOUNSFIELD = "HU"
EXPORT_AGAIN = "Export it again, or take it out of the data set"
T = TypeVar("T", int, NDArray[np.int64])


class Display:
    """What a file says of how a frame's grey values are shown.

    In multi-frame files it stands in groups of the frame or of all frames, which go before the file's own.
    """

    def __init__(self, dataset: Dataset, frame: int) -> None:
        self.dataset = dataset
        self.scopes = (*_groups(dataset, frame), dataset)
        self.bits = int(dataset.BitsStored)
        self.signed = bool(dataset.get("PixelRepresentation", 0))

    def find(self, keyword: str) -> Any:
        """Return the first value of an attribute that is not empty, or None."""
        values = (scope.get(keyword) for scope in self.scopes)
        return next((value for value in values if value is not None and value != "" and value != []), None)

    def number(self, keyword: str) -> float | None:
        """Return an attribute's number, the first of several; None if it is absent or empty.

        Raises:
            ImageRefusal: it is no finite number.
        """
        try:
            value = self.find(keyword)
            if value is None:
                return None
            number = float(value if isinstance(value, (int, float, str)) else value[0])
        except (TypeError, ValueError, IndexError):
            number = np.nan
        if not np.isfinite(number):
            raise ImageRefusal(f"has a {keyword} that is no number", remedy=EXPORT_AGAIN)
        return number

    @property
    def rescaling(self) -> tuple[float, float]:
        """Return slope and intercept, 1 and 0 where the file says nothing.

        Raises:
            ImageRefusal: one is no number, or the slope is 0.
        """
        slope, intercept = self.number("RescaleSlope"), self.number("RescaleIntercept")
        if slope == 0:
            raise ImageRefusal("has a RescaleSlope of 0, which makes all values one", remedy=EXPORT_AGAIN)
        return (1.0 if slope is None else slope), (0.0 if intercept is None else intercept)

    @property
    def has_units(self) -> bool:
        """Tell whether values have a sign or become others before they are shown: their bits are no range then."""
        return self.signed or self.find("ModalityLUTSequence") is not None or self.rescaling != (1, 0)

    @property
    def in_hounsfield_units(self) -> bool:
        """Tell whether the file says so, as CT does by its rescaling, without which stored values have no unit."""
        kind = self.find("RescaleType")
        if kind is None:
            return self.dataset.get("Modality") == "CT" and self.number("RescaleIntercept") is not None
        return bool(kind == HOUNSFIELD)


def grey_to_bytes(stored: NDArray[Any], dataset: Dataset, frame: int, reading: Reading) -> NDArray[np.uint8]:
    """Map the stored grey values [H, W] of a frame to uint8 as a viewer shows them.

    1. The modality LUT, else slope and intercept, make stored values into the file's own units.
    2. The window of the reading, by the LINEAR function; for `file` the file's VOI LUT, else its first window, by the
       function that it names; else, if it has at most 8 bits, no sign and no units, v * 255 / (2^bits - 1).
    3. MONOCHROME1 turns 0..255 into 255..0.
    4. Pixel padding is black.

    Raises:
        ImageRefusal: the file declares no window and the reading neither, or what it declares cannot be followed.
    """
    display = Display(dataset, frame)
    inverted = dataset.PhotometricInterpretation == "MONOCHROME1"

    def show(levels: NDArray[Any]) -> NDArray[Any]:
        shown = _windowed(_in_units(levels, display), display, reading)
        return np.where(_padding(levels, display), 0, 255 - shown if inverted else shown)

    if stored.ndim != 2:
        raise ImageRefusal("declares grey values and holds several channels", remedy=EXPORT_AGAIN)
    return by_table(stored, show)


def _groups(dataset: Dataset, frame: int) -> Iterator[Dataset]:
    for keyword, index in (("PerFrameFunctionalGroupsSequence", frame), ("SharedFunctionalGroupsSequence", 0)):
        groups = dataset.get(keyword) or []
        if index < len(groups):
            for inner in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
                yield from groups[index].get(inner) or []


def _in_units(levels: NDArray[Any], display: Display) -> NDArray[Any]:
    if sequence := display.find("ModalityLUTSequence"):
        return _look_up(levels, sequence[0], display)[0]
    slope, intercept = display.rescaling
    units: NDArray[Any] = levels * np.float64(slope) + intercept
    return units


def _windowed(values: NDArray[Any], display: Display, reading: Reading) -> NDArray[Any]:
    if not isinstance(reading.window, str):
        return apply_window(values, *reading.window)
    if reading.window != FROM_FILE:
        if not display.in_hounsfield_units:
            raise ImageRefusal(
                f"does not say that it is CT in Hounsfield units, for which data.window: {reading.window} is",
                accepted=f"files with RescaleType {HOUNSFIELD}, or CT with a RescaleIntercept and no other RescaleType",
                remedy="Set data.window to file, or to [centre, width] in the file's own units",
            )
        return apply_window(values, *WINDOWS[reading.window])
    if sequence := display.find("VOILUTSequence"):
        entries, bits = _look_up(values, sequence[0], display)
        return _spread(entries, bits)
    centre, width = display.number("WindowCenter"), display.number("WindowWidth")
    if centre is not None and width is not None:
        return apply_window(values, centre, width, _function(display))
    if display.bits <= 8 and not display.has_units:
        return _spread(values, display.bits)
    raise ImageRefusal(
        f"has {display.bits} bits and declares neither a window nor a VOI LUT",
        accepted="DICOM that declares its window, unless data.window is set",
        remedy="Set data.window to [centre, width] in the file's own units, or to a named window for CT",
    )


def _spread(values: NDArray[Any], bits: int) -> NDArray[Any]:
    """Spread 0..2^bits - 1 over 0..255, in float64, halves to the even integer."""
    spread: NDArray[Any] = np.rint(values * 255 / (2**bits - 1))
    return spread


def _function(display: Display) -> Function:
    name = display.find("VOILUTFunction") or Function.LINEAR
    if name not in list(Function):
        raise ImageRefusal(
            "names a function for its window that is unknown",
            accepted=", ".join(Function),
            remedy="Set data.window to [centre, width]",
        )
    return Function(name)


def _look_up(values: NDArray[Any], item: Dataset, display: Display) -> tuple[NDArray[np.int64], int]:
    """Return the entries of a lookup table for values, and their bits; what lies outside has the outermost entries."""
    count, first, bits = (int(number) for number in item.LUTDescriptor)
    count = count or 2**16
    if first >= 2**15 and (values < 0).any():
        first -= 2**16  # written without a sign, for values with one
    data = item.LUTData
    if isinstance(data, bytes):
        little = display.dataset.original_encoding[1]
        width = "u1" if len(data) < 2 * count else "<u2" if little else ">u2"
        data = np.frombuffer(data, dtype=width)
    table = np.asarray(data, dtype=np.int64)[:count]
    if len(table) < count or not 0 < bits <= 16:
        raise ImageRefusal(
            "has a lookup table that is shorter than it declares",
            remedy="Export it again, or set data.window to [centre, width]",
        )
    return table[np.clip(np.rint(values).astype(np.int64) - first, 0, count - 1)], bits


def _padding(levels: NDArray[Any], display: Display) -> NDArray[np.bool_]:
    value, limit = (display.dataset.get(keyword) for keyword in ("PixelPaddingValue", "PixelPaddingRangeLimit"))
    if value is None:
        return np.zeros(levels.shape, dtype=np.bool_)
    ends = sorted(
        lowest_bits(int(end), display.bits, display.signed) for end in (value, value if limit is None else limit)
    )
    padding: NDArray[np.bool_] = (levels >= ends[0]) & (levels <= ends[1])
    return padding


def lowest_bits(values: T, bits: int, signed: bool) -> T:
    """Return what the lowest bits of integers say, as two's complement if signed.

    Above them old files keep overlays, and padding is written with its sign or without.
    """
    lowest, sign = values & ((1 << bits) - 1), 1 << (bits - 1)
    return (lowest ^ sign) - sign if signed else lowest
