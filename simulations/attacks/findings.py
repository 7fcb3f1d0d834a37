"""What an attack found, as figures that can be printed, compared and kept."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
Flags = NDArray[np.bool_]
Tell = Callable[[str, int, int], None]
"""Reports progress: what is being done, how many of its parts are done, and how many there are."""


def ignore_progress(what: str, done: int, total: int) -> None:
    """Report progress to nobody."""


@dataclass(frozen=True)
class Finding:
    """One figure of an attack.

    Attributes:
        attack: its name.
        target: on what, such as "exemplars".
        measure: what is measured.
        unit: of value, interval and guess; may be empty.
        value: how well the attack did.
        guess: what does as well without the run: a coin, a random image.
        low, high: ends of the 95 % bootstrap interval, where there is one.
        members, others: records on either side of the question, where there are two.
        note: what a reader has to know to read the figure.
    """

    attack: str
    target: str
    measure: str
    unit: str
    value: float
    guess: float
    low: float | None = None
    high: float | None = None
    members: int | None = None
    others: int | None = None
    note: str = ""

    @property
    def key(self) -> tuple[str, str, str]:
        """Return what is the same in two runs that are compared."""
        return self.attack, self.target, self.measure


@dataclass(frozen=True)
class Picture:
    """Images of an attack, as PNG, with what they show."""

    caption: str
    png: bytes

    @property
    def inline(self) -> str:
        """Return the picture as the address of an image in a page."""
        return f"data:image/png;base64,{base64.b64encode(self.png).decode()}"


@dataclass(frozen=True)
class AttackResult:
    """All that an attack on one run brought; `skipped` says why there is nothing."""

    findings: list[Finding] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    skipped: str = ""
