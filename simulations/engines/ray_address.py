"""Whether a Ray cluster can be there at all, asked in seconds."""

from __future__ import annotations

import socket

CONNECT_SECONDS = 10.0


def require_listener(address: str) -> None:
    """Find out in seconds that nobody listens at an address; Ray itself would ask for minutes.

    Raises:
        ValueError: it is not HOST:PORT, with or without ray:// before it.
        OSError: nobody listens there.
    """
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if not separator or not port.isdigit():
        raise ValueError("it is not HOST:PORT")
    socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
