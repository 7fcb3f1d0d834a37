"""Labels that people typed: two spellings of one class, and values that mean that there is no label."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from decimal import Decimal

from dynammo_core.support.errors import DataError, nearest_match

MISSING = frozenset({"", "nan", "-nan", "na", "n/a", "<na>", "nat", "null", "#n/a", "#n/a n/a", "#na", "#null!"})
"""What spreadsheets, databases and statistics programs write for a missing value, in lower case."""


def is_missing(value: str) -> bool:
    """Tell whether a cell holds what programs write for a missing value, such as `nan` or `#N/A`."""
    return folded(value) in MISSING or value.strip() == "None"


def folded(label: str) -> str:
    """Return what two spellings of one label have in common.

    Case, white space (no-break spaces too), underscores, invisible signs and the Unicode form make no difference, nor
    does the way in which a number is written.
    """
    plain = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", label).casefold())
    plain = "".join(sign for sign in plain if unicodedata.category(sign) not in ("Cf", "Cc"))
    plain = re.sub(r"[\s_]+", " ", plain).strip()
    if re.fullmatch(r"[+-]?\d+(\.\d*)?|\.\d+", plain):
        return f"{Decimal(plain).normalize():f}"
    return plain.replace(" ", "")


def refuse_unclear_labels(counts: Mapping[str, int], where: str, registry: Iterable[str] | None = None) -> None:
    """Refuse labels that are missing values, cannot be printed, or are spelt as another one is.

    Args:
        counts: the number of images of each label.
        where: folder or file of the data, for messages.
        registry: class names that a person has listed, which may be called anything, but need no second spelling.

    Raises:
        DataError: a label is unclear; the message names it and its number of images.
    """
    known = tuple(registry or ())
    spellings: dict[str, str] = {}
    for label in (*known, *sorted(label for label in counts if label not in known)):
        other = spellings.setdefault(folded(label), label)
        if other != label:
            raise DataError(
                f"the labels {other!a} ({counts.get(other, 0)} images) and {label!a} ({counts.get(label, 0)} images) "
                f"in {where} differ in nothing but case, spaces, Unicode form or the way a number is written",
                remedy="Give one disease one label; if they are two, give them names that people can tell apart",
            )
    for label, count in counts.items():
        if label not in known and (is_missing(label) or not label.isprintable()):
            raise DataError(
                f"{count} images in {where} have the label {label!a}, which is no name of a class",
                accepted="names that can be printed, other than those that programs write for a missing value",
                remedy="Give these images their label, or take them out of the data set",
            )


def refuse_two_spellings(what: str, names: Iterable[tuple[str | None, str]]) -> None:
    """Refuse patients or sites that are written in two ways: one would be taken for two.

    Args:
        what: what the names are of, for messages.
        names: each name with the place where it stands; None where there is no name.

    Raises:
        DataError: two names differ in nothing that people see; the message names their places, and no patient.
    """
    first: dict[str, str] = {}
    for name, place in names:
        if name is not None:
            first.setdefault(name, place)
    spellings: dict[str, str] = {}
    for name, place in first.items():
        if (other := spellings.setdefault(folded(name), name)) != name:
            raise DataError(
                f"the {what} of {first[other]} and the {what} of {place} differ in nothing but case, spaces, Unicode "
                "form or the way a number is written",
                remedy=f"Write each {what} in one way; if they are two, give them names that people can tell apart",
            )


def require_registered(label: str, class_names: Iterable[str], where: str) -> None:
    """Refuse a label that is not a class name.

    Raises:
        DataError: the label is unknown; the message names it, `where` it stands and the registry.
    """
    names = tuple(class_names)
    if label not in names:
        raise DataError(
            f"the label {label!r} of {where} is not in the registry{nearest_match(label, names)}",
            accepted=", ".join(names),
            remedy="Correct the label, or add it to data.classes at every site",
        )
