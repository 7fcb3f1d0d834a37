"""The names of classes that sites announce, and the check that one disease under two names does not become two."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dynammo_core.configuration.config import Config, resolve
from dynammo_core.data.index.labels import folded
from dynammo_core.data.task_stream import build_task_stream
from dynammo_core.support.errors import ConfigError, ProtocolError

BANDS = (1, 10, 30, 100, 300, 1_000, 3_000, 10_000, 30_000, 100_000)
"""Numbers of images: a site reveals only the largest of them that its own number for a class reaches."""

LONG_WORD = 5
"""Letters from which on a word is recognised in spite of a typing error; shorter ones would be other words."""
LONGEST_NAME, MOST_NAMES = 200, 1000


@dataclass(frozen=True)
class Announcement:
    """The classes that a site can bring, by the names that its own labels have.

    Attributes:
        bands: for each class the largest of `BANDS` that its number of images reaches, training and test together.
    """

    bands: Mapping[str, int]

    def __post_init__(self) -> None:
        require_names(self.bands)
        for name, band in self.bands.items():
            if band not in BANDS:
                raise ProtocolError(
                    f"the class {name!r} cannot be announced with {band} images", accepted=f"one of {BANDS}"
                )


def require_names(names: Collection[str]) -> None:
    """Refuse names of classes that no site has, or that could command the operator's terminal.

    Raises:
        ProtocolError: there is such a name, one twice, or too many.
    """
    if len(names) > MOST_NAMES or len(set(names)) < len(names):
        raise ProtocolError(f"{len(names)} classes are named", accepted=f"at most {MOST_NAMES}, none of them twice")
    for name in names:
        if not name or len(name) > LONGEST_NAME or not name.isprintable():
            raise ProtocolError(
                f"{name[:LONGEST_NAME]!r} is no name of a class",
                accepted=f"1 to {LONGEST_NAME} printable characters",
            )


def band(count: int) -> int:
    """Return the largest of `BANDS` that `count` reaches; `count` is at least 1."""
    return max(bound for bound in BANDS if bound <= count)


def same_disease(name: str, names: Iterable[str]) -> str | None:
    """Find a name that a careful person would take for the same as `name`.

    The two differ by case, spaces, accents and punctuation, or by a typing error in a word of at least `LONG_WORD`
    letters: one letter more, less or another, or two exchanged. An `a` at the beginning is none, since it negates
    (`typical`, `atypical`), and neither is another number or another sign at the end (`HER2+`, `HER2-`).
    """
    words = _words(name)
    return next((other for other in names if _alike(words, _words(other))), None)


def misspelt(labels: Iterable[str], classes: Collection[str]) -> dict[str, str]:
    """Return, for each label that is not a class but nearly equals one, the class that it seems to mean."""
    near = {label: same_disease(label, classes) for label in labels if label not in classes}
    return {label: name for label, name in near.items() if name}


def with_new_task(config: Config[Any], classes: Sequence[str], *, distinct: bool = False) -> Config[Any]:
    """Return the experiment with one more task, which brings new classes; existing classes keep their numbers.

    Args:
        config: an experiment with a registry of classes.
        classes: the new names.
        distinct: whether a person has confirmed that names which look alike mean different diseases.

    Raises:
        ConfigError: there is no registry to add to, a name is in it already, or a name looks like another.
    """
    registry = config.data.classes
    if registry is None:
        raise ConfigError(
            "the experiment has no registry of classes to which a class can be added", remedy="Set data.classes"
        )
    known = list(registry)
    for name in classes:
        if name in known:
            raise ConfigError(f"the class {name!r} is already in the registry", accepted="names of new classes")
        if not distinct and (other := same_disease(name, known)):
            raise ConfigError(
                f"the class {name!r} looks like {other!r}, which is in the registry",
                remedy=f"If both are the same disease, ask the site to call it {other!r}; if not, add --distinct",
            )
        known.append(name)
    stream = build_task_stream(config.tasks, registry, config.seed)
    data = config.model_dump(mode="json")
    data["data"]["classes"] = known
    data["tasks"] = {
        "sizes": [len(task) for task in stream.tasks] + [len(classes)],
        "class_order": [*stream.seen(len(stream) - 1), *range(len(registry), len(known))],
    }
    return resolve(data, "the extended experiment", {})


def _words(name: str) -> list[str]:
    # Decomposed, so that an accent is a mark of its own: one name is written with it and without, in one or two signs.
    plain = unicodedata.normalize("NFKD", unicodedata.normalize("NFKC", name).casefold())
    letters = "".join(sign for sign in plain if not unicodedata.combining(sign))
    return re.findall(r"[^\W_]+|[+-](?=\s*$)", letters)


def _alike(one: Sequence[str], other: Sequence[str]) -> bool:
    if "".join(one) == "".join(other):
        return True
    return len(one) == len(other) and all(map(_mistyped, one, other))


def _mistyped(one: str, other: str) -> bool:
    """Tell whether two words are equal but for one typing error."""
    if folded(one) == folded(other):  # one number may be written in two ways
        return True
    short, long = sorted((one, other), key=len)
    if len(long) < LONG_WORD or len(long) - len(short) > 1 or long == "a" + short:
        return False
    first = next((i for i, pair in enumerate(zip(short, long, strict=False)) if pair[0] != pair[1]), len(short))
    rest, longer = short[first:], long[first:]
    added = rest == longer[1:]
    replaced = rest[1:] == longer[1:]
    exchanged = rest[:2] == longer[1::-1] and rest[2:] == longer[2:]
    wrong = longer[0] if added else rest[0] + longer[0]
    return (added or replaced or exchanged) and not re.search(r"\d", wrong)
