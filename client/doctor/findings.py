"""What a check of a site found: one line, how bad it is, and the remedy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "note", "warning", "wrong"]


@dataclass(frozen=True)
class Finding:
    """One line of what was looked at.

    Attributes:
        check: what was looked at, such as "clock".
        state: ok; note, good to know; warning, works but should not stay so; wrong, the site cannot take part.
        what: what was found.
        remedy: what to do about it; empty where nothing is to be done.
        details: lines about single images. They may name patients, so they belong on the engineer's screen and nowhere
            else: in no JSON and in no log.
    """

    check: str
    state: State
    what: str
    remedy: str = ""
    details: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        """What was found and what to do about it, as one paragraph."""
        sentences = [part.rstrip(". ") for part in (self.what, self.remedy) if part]
        return ". ".join(sentences) + "."
