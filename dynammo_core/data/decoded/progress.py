"""How far the decoding of many images has come, for whoever wants to show it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

INTERVAL = 0.5
"""Seconds between two reports."""


@dataclass(frozen=True)
class Decoding:
    """How far it has come; nothing here names an image.

    Attributes:
        done: images decoded.
        total: images to be decoded.
        seconds: since the first was begun.
    """

    done: int
    total: int
    seconds: float

    @property
    def rate(self) -> float:
        """Return the images decoded per second."""
        return self.done / self.seconds if self.seconds else 0.0

    @property
    def seconds_left(self) -> float:
        """Return the seconds left at this rate."""
        return (self.total - self.done) / self.rate if self.rate else 0.0

    def event(self) -> dict[str, str | int]:
        """Return it as an event of a run, with its speed in words: `312/s, 0:04:10`, where the time is what is left."""
        left = timedelta(seconds=round(self.seconds_left))
        return {"event": "decoding", "done": self.done, "total": self.total, "speed": f"{self.rate:.0f}/s, {left}"}


Listener = Callable[[Decoding], None]
_listeners: list[Listener] = []


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Tell a listener how far decoding has come, twice a second and at the end, wherever this process decodes inside.

    What decodes lies far below what shows, and a site shows nothing: so it is not handed down from call to call.
    """
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


class Counter:
    """Counts the images of one set while they are decoded, and tells the listeners."""

    def __init__(self, total: int) -> None:
        self._total, self._done = total, 0
        self._start = time.monotonic()
        self._told = self._start

    def advance(self) -> None:
        """Count one more image."""
        self._done += 1
        now = time.monotonic()
        if now - self._told >= INTERVAL or (self._done == self._total and self._told > self._start):
            self._told = now
            for listener in _listeners:
                listener(Decoding(self._done, self._total, now - self._start))
