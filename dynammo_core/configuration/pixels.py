"""The two settings of `data` that are a name or numbers: the window of stored values, and the normalisation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator
from pydantic_core import PydanticCustomError

from dynammo_core.data.images.reading import FROM_FILE, WINDOWS, Window, is_window
from dynammo_core.support.errors import unknown_name
from dynammo_core.support.registry import UNKNOWN

Channels: TypeAlias = tuple[float, float, float]
NORMALISATIONS = ("half", "imagenet", "backbone")
TRIPLES = "[[R, G, B], [R, G, B]]"


def _refuse_unknown(what: str, value: Any, names: Sequence[str], numbers: str) -> None:
    if isinstance(value, str) and value not in names:
        raise PydanticCustomError(
            UNKNOWN,
            "{unknown}; accepted: {accepted}",
            {"unknown": unknown_name(what, value, names), "accepted": f"{', '.join(names)}, or {numbers}"},
        )


def _window(window: Any) -> Any:
    _refuse_unknown("window", window, (FROM_FILE, *WINDOWS), "[centre, width]")
    if not isinstance(window, str) and not is_window(window):
        raise ValueError(f"{window} must be a name or two finite numbers, [centre, width], the width above 0")
    return window


def _normalisation(value: Any) -> Any:
    _refuse_unknown("normalisation", value, NORMALISATIONS, TRIPLES)
    if not isinstance(value, str) and not _is_normalisation(value):
        raise ValueError(f"{value} must be a name or {TRIPLES}: finite means, and standard deviations above 0")
    return value


def _is_normalisation(value: Any) -> bool:
    lists = [value, *value] if isinstance(value, (list, tuple)) else [value]
    if [len(part) if isinstance(part, (list, tuple)) else 0 for part in lists] != [2, 3, 3]:
        return False
    numbers = [*value[0], *value[1]]
    return all(type(number) in (int, float) and math.isfinite(number) for number in numbers) and min(value[1]) > 0


KnownWindow: TypeAlias = Annotated[Window, BeforeValidator(_window)]
KnownNormalisation: TypeAlias = Annotated[
    Literal["half", "imagenet", "backbone"] | tuple[Channels, Channels], BeforeValidator(_normalisation)
]
