"""How the stored values of an image file become the 8-bit pixels that networks are trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Window = str | tuple[float, float]
"""A name of `WINDOWS`, `file` for the window that each file declares, or centre and width in the file's own units."""

Fit = Literal["stretch", "pad", "crop"]
"""How an image that is not square becomes one; see `fit_square`."""


@dataclass(frozen=True)
class Reading:
    """What cannot be known from an image file alone, so that the experiment declares it.

    Attributes:
        window: maps values of more than 8 bits, and all values of DICOM, to 0..255.
        frame: the frame or page to take from files with several, counted from 1; None refuses such files.
    """

    window: Window = "file"
    frame: int | None = None


AS_DECLARED = Reading()
"""Takes what each file declares and nothing more."""
