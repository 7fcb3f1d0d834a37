"""The gate before a real SuperLink: who may do what, by the address of the connection alone."""

from __future__ import annotations

import asyncio
import http.client
import ssl
import sys
from typing import Any

import pytest

from server.gate import Gate
from server.settings import ServerSettings

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs all of 127.0.0.0/8 on the loopback interface")

THIS_MACHINE, OPERATOR, STRANGER = "127.0.0.1", "127.0.0.9", "127.0.0.2"
OPERATORS_PATHS = [
    "/v1/control/start-run",
    "/v1/control/register-node",
    "/v1/control/list-runs",
    "/v1/control/stream-logs",
    "/v1/runtime/pull-pending-tasks",
    "/v1/runtime/",
    "/docs",
    "/openapi.json",
    "/",
    "/v1/fleet",
    "/V1/FLEET/../control/list-runs",
    "//v1/control/list-runs",
]
SITES_PATHS = ["/v1/fleet/activate-node", "/v1/fleet/pull-messages", "/v1/fleet/push-object"]
FORGED = [
    {"X-Forwarded-For": THIS_MACHINE},
    {"X-Forwarded-For": f"{OPERATOR}, {THIS_MACHINE}"},
    {"X-Real-IP": THIS_MACHINE, "Forwarded": f"for={THIS_MACHINE}", "X-Forwarded-Host": "localhost"},
]


def asked(settings: ServerSettings, source: str, path: str, headers: dict[str, str] | None = None) -> int:
    """HTTP status of a request from an address; the body is no message of Flower's, so nothing is done."""
    context = ssl.create_default_context(cafile=str(settings.ca_certificate))
    connection = http.client.HTTPSConnection(
        "127.0.0.1", settings.port, context=context, source_address=(source, 0), timeout=30
    )
    try:
        connection.request("POST", path, body=b"x", headers={"content-type": "text/plain", **(headers or {})})
        return connection.getresponse().status
    finally:
        connection.close()


@pytest.mark.parametrize("path", OPERATORS_PATHS)
def test_what_operators_do_is_refused_to_strangers(superlink: ServerSettings, path: str) -> None:
    assert asked(superlink, STRANGER, path) == 403
    for source in (THIS_MACHINE, OPERATOR):
        assert asked(superlink, source, path) in (404, 405, 415)  # no such path, no such method, no message of Flower's


@pytest.mark.parametrize("headers", FORGED)
def test_no_header_helps_a_stranger(superlink: ServerSettings, headers: dict[str, str]) -> None:
    assert asked(superlink, STRANGER, "/v1/control/start-run", headers) == 403


def test_no_header_hinders_an_operator(superlink: ServerSettings) -> None:
    for text in (STRANGER, "unknown"):
        assert asked(superlink, THIS_MACHINE, "/v1/control/start-run", {"X-Forwarded-For": text}) == 415


@pytest.mark.parametrize("path", SITES_PATHS)
def test_what_sites_do_is_open_to_all(superlink: ServerSettings, path: str) -> None:
    for source in (STRANGER, THIS_MACHINE, OPERATOR):
        assert asked(superlink, source, path) == 415


def gated(client: str, kind: str = "http", path: str = "/v1/control/start-run") -> list[str]:
    """What passes the gate of the operators 10.0.0.5 and ::1: the kinds of the messages that come back."""
    said: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        said.append("passed")

    async def send(message: dict[str, Any]) -> None:
        said.append(str(message.get("status", message["type"])))

    async def receive() -> dict[str, Any]:
        return {"type": "http.request"}

    scope = {"type": kind, "path": path, "client": (client, 1), "headers": [], "method": "POST"}
    asyncio.run(Gate(app, ("10.0.0.5", "::1"))(scope, receive, send))
    return said


@pytest.mark.parametrize("address", ["10.0.0.5", "::1", "0:0:0:0:0:0:0:1", "::ffff:10.0.0.5"])
def test_an_address_is_known_however_it_is_written(address: str) -> None:
    assert gated(address) == ["passed"]


@pytest.mark.parametrize("address", ["10.0.0.6", "::2", "::ffff:10.0.0.6", "::10.0.0.5"])
def test_other_addresses_are_refused(address: str) -> None:
    assert gated(address)[0] == "403"
    assert "passed" not in gated(address)


def test_every_kind_of_connection_is_looked_at() -> None:
    assert "passed" not in gated("10.0.0.6", kind="websocket")
    assert gated("10.0.0.6", kind="lifespan") == ["passed"]
