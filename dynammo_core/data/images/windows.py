"""Windows, which map stored values to 0..255, by DICOM's formulas (PS3.3, C.11.2.1.2 and C.11.2.1.3)."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynammo_core.data.images.refusal import ImageRefusal


class Function(StrEnum):
    """The ways in which a window may map values, named as DICOM names them."""

    LINEAR = "LINEAR"
    LINEAR_EXACT = "LINEAR_EXACT"
    SIGMOID = "SIGMOID"


def apply_window(
    values: NDArray[Any], centre: float, width: float, function: Function = Function.LINEAR
) -> NDArray[np.uint8]:
    """Map values of any shape to 0..255 in float64, rounded to the nearest integer, halves to the even one.

    Raises:
        ImageRefusal: the width is below 1 for LINEAR, or not above 0.
    """
    if not width >= (1 if function is Function.LINEAR else np.nextafter(0, 1)):
        raise ImageRefusal(
            f"has a window of width {width:g}, which maps nothing ({function})",
            accepted="a width of at least 1 for LINEAR, above 0 for LINEAR_EXACT and SIGMOID",
            remedy="Set data.window to [centre, width]",
        )
    return by_table(values, lambda levels: np.rint(_curve(levels.astype(np.float64), centre, width, function)))


def _curve(x: NDArray[np.float64], centre: float, width: float, function: Function) -> NDArray[np.float64]:
    if function is Function.SIGMOID:
        with np.errstate(over="ignore"):  # far below the window the exponential is infinite, and its quotient 0
            return 255 / (1 + np.exp(-4 * (x - centre) / width))
    if function is Function.LINEAR_EXACT:
        low, high = centre - width / 2, centre + width / 2
        line = ((x - centre) / width + 0.5) * 255
    else:
        low, high = centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2
        line = ((x - (centre - 0.5)) / max(width - 1, 1) + 0.5) * 255  # with a width of 1 no value lies between
    return np.where(x <= low, 0.0, np.where(x > high, 255.0, line))


def by_table(values: NDArray[Any], function: Callable[[NDArray[Any]], NDArray[Any]]) -> NDArray[np.uint8]:
    """Apply a function of single values; for integers of at most 16 bits only once per level, which is much faster."""
    if values.dtype.kind in "iu" and values.dtype.itemsize <= 2 and values.size:
        lowest, highest = int(values.min()), int(values.max())
        table = function(np.arange(lowest, highest + 1, dtype=np.int64)).astype(np.uint8)
        return table[values.astype(np.int64) - lowest]
    return function(values).astype(np.uint8)
