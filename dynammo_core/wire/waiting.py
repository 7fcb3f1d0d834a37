"""How soon either end looks again for a part of a message that has not arrived; imports nothing heavy."""

from __future__ import annotations

from typing import TypedDict


class Looks(TypedDict):
    """Settings of Flower's `pull_objects`: seconds until it looks again, at first and at most, and how often."""

    initial_backoff: float
    backoff_cap: float
    max_tries_per_object: int | None


SOON = Looks(initial_backoff=0.02, backoff_cap=2.0, max_tries_per_object=None)
"""A message is seen before its parts are there, and Flower looks again after a second; here after 0.02 seconds, then
each time after twice as long, until its own limit of two hours."""
