"""Flower's SuperLink behind a gate: only the operator's own addresses may submit code, register sites or read results.

Flower 1.41 serves sites (`/v1/fleet`) and operators (`/v1/control`, `/v1/runtime`) on one port, and asks no operator
who they are: without the gate, whoever holds the authority's certificate could run code at every site. What counts is
the address of the connection, as any caller can write a header: behind a reverse proxy that is the proxy's, so let it
pass on `/v1/fleet` alone.
"""

from __future__ import annotations

import ipaddress
import os
from typing import Any

from flwr.superlink import extensions
from flwr.superlink.cli import flower_superlink
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse

OPERATORS = "DYNAMMO_OPERATORS"
OPEN = ("/v1/fleet/", "/health")


class Gate:
    """ASGI middleware: refuses every path but a site's own to all but the addresses in `operators`."""

    def __init__(self, app: Any, operators: tuple[str, ...]) -> None:
        self._app = app
        self._operators = {ipaddress.ip_address(address) for address in operators}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass a request on, or answer it with 403."""
        if scope["type"] != "lifespan" and not scope["path"].startswith(OPEN):
            address = ipaddress.ip_address(scope["client"][0])
            mapped = getattr(address, "ipv4_mapped", None)
            if (mapped or address) not in self._operators:
                await PlainTextResponse("only the operator's addresses may do this\n", 403)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def main() -> None:
    """`flower-superlink` with the gate before everything else; its arguments are Flower's."""
    operators = tuple(os.environ.get(OPERATORS, "127.0.0.1,::1").split(","))
    os.environ["FORWARDED_ALLOW_IPS"] = ""  # uvicorn's: from whom it believes X-Forwarded-For
    extensions.get_middleware = lambda: (Middleware(Gate, operators=operators),)
    flower_superlink()


if __name__ == "__main__":
    main()
