"""Read the body of a request, and refuse one that is too large or arrives too slowly."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import Any

SMALL = 64 << 10
"""Bytes that suffice for every call except messages and apps."""

GRACE_SECONDS, LEAST_BYTES_PER_SECOND = 20.0, 16 << 10
AT_ONCE = 4
"""Most messages of one site that are read at a time; Flower sends two."""


class BodyRefusedError(Exception):
    """A body that is too large or too slow, with the HTTP status that says so."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


class Turns:
    """Let each site have only a few large messages read at once, so that they cannot fill the memory."""

    def __init__(self) -> None:
        self._turns: dict[int, asyncio.Semaphore] = {}

    def of(self, node: int) -> asyncio.Semaphore:
        """Return the turns of one registered site."""
        return self._turns.setdefault(node, asyncio.Semaphore(AT_ONCE))


async def received(scope: Any, receive: Any, limit: int) -> deque[bytes]:
    """Return the whole body of a request, in parts.

    Args:
        scope: the request; a declared length above the limit is refused before a byte is read.
        receive: gives the next part.
        limit: most bytes.

    Raises:
        BodyRefusedError: it has more bytes than `limit`, or arrives too slowly.
    """
    declared = max((_length(value) for name, value in scope["headers"] if name == b"content-length"), default=0)
    if declared > limit:
        raise _too_large(limit)
    parts: deque[bytes] = deque()
    size, began = 0, time.monotonic()
    while True:
        left = GRACE_SECONDS + size / LEAST_BYTES_PER_SECOND - (time.monotonic() - began)
        try:
            message = await asyncio.wait_for(receive(), max(left, 0.0))
        except TimeoutError as error:
            raise BodyRefusedError("the body arrived too slowly", 408) from error
        if part := message.get("body", b""):
            size += len(part)
            if size > limit:
                raise _too_large(limit)
            parts.append(part)
        if not message.get("more_body", False):  # a caller who is gone has none either
            return parts


def replayed(parts: deque[bytes], receive: Any) -> Any:
    """Return a `receive` that replays the parts of a body, freeing each as it goes, and then calls `receive`."""
    ended = False

    async def again() -> Any:
        nonlocal ended
        if ended:
            return await receive()
        part = parts.popleft() if parts else b""
        ended = not parts
        return {"type": "http.request", "body": part, "more_body": not ended}

    return again


def _length(value: bytes) -> int:
    return int(value) if value.isdigit() else 0


def _too_large(limit: int) -> BodyRefusedError:
    return BodyRefusedError(f"the body is larger than {limit} bytes", 413)
