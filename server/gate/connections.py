"""Connections to the SuperLink: limited per address and in total, and closed if headers do not arrive in time.

uvicorn waits without end for the headers of a request, and its faster parser sets no limit to them. Here its other
parser reads, which refuses headers above 64 KiB, under a time limit; an address that holds many gets no more.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any, ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEADER_SECONDS = 15.0
"""Seconds from the first byte of a request, or from the connection, to the end of its headers."""

MOST_FROM_ONE, MOST = 200, 600
"""Most connections at a time; each site holds about three, and many sites may share the address of a proxy."""


class Doorway(H11Protocol):
    """One connection, closed at once if there are too many, or later if it keeps the server waiting for headers."""

    open_connections: ClassVar[Counter[str]] = Counter()

    def connection_made(self, transport: Any) -> None:
        """Count the new connection, and close it if there are too many."""
        super().connection_made(transport)
        self._waiting: asyncio.TimerHandle | None = self.loop.call_later(HEADER_SECONDS, transport.abort)
        self._address = self.client[0] if self.client else ""
        self.open_connections[self._address] += 1
        if self.open_connections[self._address] > MOST_FROM_ONE or self.open_connections.total() > MOST:
            transport.abort()

    def data_received(self, data: bytes) -> None:
        """Pass data on to the parser; the time limit runs while headers are incomplete."""
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._come_to_the_point()
        elif self._waiting is None:
            self._waiting = self.loop.call_later(HEADER_SECONDS, self.transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        """Take the closed connection off the count."""
        self._come_to_the_point()
        self.open_connections[self._address] -= 1
        if not self.open_connections[self._address]:
            del self.open_connections[self._address]
        super().connection_lost(exc)

    def _come_to_the_point(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None
