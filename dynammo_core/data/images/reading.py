"""How the stored values of an image file become the 8-bit pixels that networks are trained on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

Window = str | tuple[float, float]
"""A name of `WINDOWS`, `file` for the window that each file declares, or centre and width in the file's own units."""

Fit = Literal["stretch", "pad", "crop"]
"""How an image that is not square becomes one; see `fit_square`."""

FROM_FILE = "file"
"""Name of the window that each file declares itself."""
WINDOWS: Mapping[str, tuple[float, float]] = MappingProxyType(
    {
        "brain": (40.0, 80.0),
        "subdural": (75.0, 215.0),
        "stroke": (40.0, 40.0),
        "temporal_bone": (600.0, 2800.0),
        "lung": (-600.0, 1500.0),
        "mediastinum": (50.0, 350.0),
        "soft_tissue": (50.0, 400.0),
        "liver": (30.0, 150.0),
        "spine": (50.0, 250.0),
        "bone": (400.0, 1800.0),
    }
)
"""Centre and width, in Hounsfield units, of the windows that radiologists read CT with. A name never changes its
numbers, since model files carry names."""


@dataclass(frozen=True)
class Reading:
    """What cannot be known from an image file alone, so that the experiment declares it.

    Attributes:
        window: maps values of more than 8 bits, and all values of DICOM, to 0..255.
        frame: the frame or page to take from files with several, counted from 1; None refuses such files.
    """

    window: Window = FROM_FILE
    frame: int | None = None


AS_DECLARED = Reading()
"""Takes what each file declares and nothing more."""


def is_window(value: Any) -> bool:
    """Tell whether a value is a centre and a width: two finite numbers, of which the second is above 0."""
    numbers = isinstance(value, (list, tuple)) and all(type(number) in (int, float) for number in value)
    return numbers and len(value) == 2 and all(map(math.isfinite, value)) and value[1] > 0
