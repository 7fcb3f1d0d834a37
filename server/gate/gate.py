"""Flower's SuperLink behind a gate: who may call what, how much a request may hold, and how long it may take.

Flower serves sites (`/v1/fleet`) and operators (`/v1/control`, `/v1/runtime`) on one port, asks no operator who
they are, and reads any body whole before it looks at a signature. The gate passes on the paths that a consortium needs,
written exactly so, and no others. What only operators do needs an address of `operators` and the operator's token. The
address that counts is the connection's, as any caller can write a header: behind a reverse proxy it is the proxy's, so
let it pass on `/v1/fleet` alone.
"""

from __future__ import annotations

import functools
import ipaddress
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import uvicorn
from flwr.superlink import extensions
from flwr.superlink.cli import flower_superlink
from starlette.middleware import Middleware
from starlette.responses import JSONResponse, PlainTextResponse, Response

from server.gate.bodies import SMALL, BodyRefusedError, Turns, received, replayed
from server.gate.connections import Doorway
from server.gate.operator_token import FILE_VARIABLE, read_token, shows_token
from server.gate.signatures import registered_name, registered_node

OPERATORS = "DYNAMMO_OPERATORS"
LARGEST_MESSAGE = "DYNAMMO_LARGEST_MESSAGE"
"""Environment variable with the most bytes in the body of a message."""

FLEET, CONTROL, RUNTIME = "/v1/fleet/", "/v1/control/", "/v1/runtime/"
HEALTH = "/health"
ADMISSION = f"{FLEET}activate-node"
NAME_HEADER = b"dynammo-site"
"""Tells the holder of a registered key, who asks for admission, under which name it is registered."""
LARGEST_APP = 16 << 20
"""Flower refuses bundles above 10 MB."""

SITES_CALLS = (
    *("activate-node", "deactivate-node", "register-node", "unregister-node", "send-node-heartbeat"),
    *("pull-messages", "pull-object", "confirm-message-received", "get-run", "get-fab"),
)
SITES_MESSAGES = ("push-messages", "push-object")
OPERATORS_CALLS = ("list-runs", "stop-run", "stream-logs", "register-node", "unregister-node", "list-nodes")
RUNTIME_CALLS = (
    *("acquire-task", "send-task-heartbeat", "pull-task-input", "push-task-output", "push-object", "pull-object"),
    *("confirm-message-received", "push-messages", "pull-messages", "push-logs", "get-nodes", "record-task-usage"),
)
ADMISSION_ASKED = f"[{ADMISSION}][ApiError:2003]"
"""Begins Flower's log line about such a request (flwr 1.41 and 1.42: supercore/error/http.py)."""
PLAIN_HOST = re.compile(rb"[A-Za-z0-9._:\[\]-]*")
"""Other characters could make a URL of another path than the one that was looked at here."""


class Gate:
    """ASGI middleware that passes on requests that are allowed, small enough and not too slow.

    Args:
        app: what is behind the gate.
        operators: addresses of machines on which operators work.
        token: the operator's token.
        largest: most bytes in a message.
    """

    def __init__(self, app: Any, operators: tuple[str, ...], token: str, largest: int) -> None:
        self._app = app
        self._operators = {ipaddress.ip_address(address) for address in operators}
        self._token = token
        self._limits = limits(largest)
        self._turns = Turns()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass a request on, or answer it with 400, 401, 403, 404, 408 or 413 and close the connection."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif answer := self._refusal(scope):
            await answer(scope, receive, send)
        elif scope["path"].removeprefix(FLEET) in SITES_MESSAGES:
            # Flower looks at the signature when it has read the body, which is too late for a large one.
            node = await registered_node(scope)
            if node is None:
                answer = JSONResponse({"detail": "Invalid SuperNode authentication"}, 401, {"connection": "close"})
                await answer(scope, receive, send)
                return
            async with self._turns.of(node):
                await self._pass(scope, receive, send)
        elif scope["path"] == ADMISSION:
            await self._pass(scope, receive, _naming(send, await registered_name(scope)))
        else:
            await self._pass(scope, receive, send)

    async def _pass(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            body = await received(scope, receive, self._limits[scope["path"]])
        except BodyRefusedError as error:
            await _closing(str(error), error.status)(scope, receive, send)
        else:
            await self._app(scope, replayed(body, receive), send)

    def _refusal(self, scope: Any) -> Response | None:
        path, headers = scope["path"], scope["headers"]
        hosts = [value for name, value in headers if name == b"host"]
        if len(hosts) > 1 or not all(PLAIN_HOST.fullmatch(host) for host in hosts):
            return _closing("the Host header is invalid", 400)
        if scope["type"] == "http" and path in self._limits and path.startswith((FLEET, HEALTH)):
            return None
        if scope["type"] != "http" or not self._is_operator(scope):
            return _closing(
                "only an operator may do this: from an address in `operators`, and with the operator's token", 403
            )
        return None if path in self._limits else _closing("a consortium does not use this path", 404)

    def _is_operator(self, scope: Any) -> bool:
        address = ipaddress.ip_address(scope["client"][0])
        mapped = getattr(address, "ipv4_mapped", None)
        return (mapped or address) in self._operators and shows_token(scope["headers"], self._token)


def limits(largest: int) -> Mapping[str, int]:
    """Return the most bytes allowed in a request's body, by path; a path that is missing is not passed on.

    Args:
        largest: most bytes in a message.
    """
    sites = {FLEET + call: SMALL for call in SITES_CALLS} | {FLEET + call: largest for call in SITES_MESSAGES}
    operators = {CONTROL + call: SMALL for call in OPERATORS_CALLS} | {f"{CONTROL}start-run": LARGEST_APP}
    return MappingProxyType({HEALTH: 0, **sites, **operators, **{RUNTIME + call: largest for call in RUNTIME_CALLS}})


def admission_questions_are_no_errors(record: logging.LogRecord) -> bool:
    """Turn Flower's error about a site's question for admission into a line of information; keep every record.

    `dynammo-site doctor` and `start` ask by a request that the SuperLink refuses only for its interval.
    """
    if ADMISSION_ASKED in record.getMessage():
        record.levelno, record.levelname = logging.INFO, "INFO"
        record.msg, record.args = "a registered site checks its connection, as `dynammo-site doctor` does", ()
    return True


def main() -> None:
    """Start `flower-superlink` with the gate before everything else; its arguments are Flower's."""
    operators = tuple(os.environ[OPERATORS].split(","))
    token, largest = read_token(Path(os.environ[FILE_VARIABLE])), int(os.environ[LARGEST_MESSAGE])
    extensions.get_middleware = lambda: (Middleware(Gate, operators=operators, token=token, largest=largest),)
    # Without `proxy_headers=False` uvicorn may believe an X-Forwarded-For.
    uvicorn.run = functools.partial(uvicorn.run, http=Doorway, ws="none", proxy_headers=False)
    logging.getLogger("flwr").addFilter(admission_questions_are_no_errors)
    flower_superlink()


def _naming(send: Any, name: str | None) -> Any:
    """Return a `send` that adds a site's registered name to the headers of the answer, if there is one."""
    if name is None:
        return send

    async def named(message: Any) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), (NAME_HEADER, name.encode("ascii"))]}
        await send(message)

    return named


def _closing(text: str, status: int) -> Response:
    """Return an answer after which the connection closes: the server would otherwise wait for an unread body."""
    return PlainTextResponse(text + "\n", status, {"connection": "close"})


if __name__ == "__main__":
    main()
