"""Errors that a person can act on: what happened and where, what was accepted, and the remedy, in one paragraph."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import ClassVar


class DynammoError(Exception):
    """Base of every error that this project raises on purpose.

    `code` is all that may leave a site: the message may hold paths or record ids, so it stays where it was raised.
    """

    code: ClassVar[int] = 100

    def __init__(self, what: str, *, accepted: str = "", remedy: str = "") -> None:
        sentences = [what.rstrip(". ")]
        if accepted:
            sentences.append(f"Accepted: {accepted.rstrip('. ')}")
        if remedy:
            sentences.append(remedy.rstrip(". "))
        super().__init__(". ".join(sentences) + ".")


class ConfigError(DynammoError):
    """An invalid key, type or value in an experiment's configuration."""

    code = 101


class DataError(DynammoError):
    """Images or labels that are missing, unreadable or contradictory."""

    code = 102


class WeightsError(DynammoError):
    """Pretrained weights whose hash, names or shapes do not fit."""

    code = 103


class CheckpointError(DynammoError):
    """A checkpoint that is corrupt, foreign, or cannot be written."""

    code = 104


class ProtocolError(DynammoError):
    """A message that differs from what `protocol` declares."""

    code = 105


class MemoryStoreError(DynammoError):
    """A replay memory that is corrupt, foreign, or at another task than the experiment."""

    code = 106


class RunError(DynammoError):
    """A run that cannot go on: too few sites answered, or nobody holds a task's data."""

    code = 107


class NotApproved(DynammoError):  # noqa: N818  # the operator reads this name, and it is not a defect
    """An experiment, or a version of the code, that no person at the site has approved; or one that was revoked."""

    code = 108


class PolicyError(DynammoError):
    """Something that the site's own policy forbids."""

    code = 109


class MissingTensorsError(DynammoError):
    """A site lacks tensors that the server took it to hold; it is asked again, with all of them."""

    code = 110


class ForeignApp(DynammoError):  # noqa: N818  # as above
    """A run whose app is not the one that is installed at the site."""

    code = 111


class AnsweredBefore(DynammoError):  # noqa: N818  # as above
    """A step that a site has answered already, for other weights or so long ago that the answer is kept no longer."""

    code = 112


class DeviceMemoryError(DynammoError):
    """Too little memory on the device that computes."""

    code = 113


def nearest_match(name: str, options: Iterable[str], most: int = 1) -> str:
    """Return ` (did you mean 'x'?)` for the options closest to `name`, or an empty string if none is close."""
    close = difflib.get_close_matches(name, list(options), n=most, cutoff=0.5)
    return f" (did you mean {' or '.join(map(repr, close))}?)" if close else ""


def unprintable(name: str) -> str:
    """List the characters of a name that cannot be printed, such as `U+00A0`; empty if all can be.

    They are invisible, look like others, control terminals, or are remains of invalid UTF-8 that no file can hold.
    """
    return ", ".join(f"U+{ord(sign):04X}" for sign in dict.fromkeys(name) if not sign.isprintable())


def unknown_name(kind: str, name: str, options: Iterable[str], most: int = 1) -> str:
    """Return words such as `unknown backbone 'resnet81' (did you mean 'resnet18'?)`, with the `most` nearest."""
    return f"unknown {kind} {name!r}{nearest_match(name, options, most)}"


def require_printable(kind: str, names: Iterable[str]) -> None:
    """Refuse names with characters that cannot be printed; `kind` says what they are names of.

    Raises:
        ValueError: there is such a name.
    """
    for name in names:
        if found := unprintable(name):
            raise ValueError(f"the {kind} {name!r} holds characters that cannot be printed ({found}); remove them")
