"""The gate before a real SuperLink: who may do what, by the address of the connection and the operator's token."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Sequence
from typing import Any

import pytest
from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_TYPES
from superlinks import OPERATOR, STRANGER, THIS_MACHINE, connected, shown_token

from server.consortium.settings import ServerSettings
from server.gate.gate import Gate, admission_questions_are_no_errors, limits
from server.gate.operator_token import HEADER

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs all of 127.0.0.0/8 on the loopback interface")

TOKEN = "t" * 43
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
    connection = connected(settings, source)
    try:
        connection.request("POST", path, body=b"x", headers={"content-type": "text/plain", **(headers or {})})
        return connection.getresponse().status
    finally:
        connection.close()


@pytest.mark.parametrize("path", OPERATORS_PATHS)
def test_what_operators_do_is_refused_to_strangers(superlink: ServerSettings, path: str) -> None:
    assert asked(superlink, STRANGER, path, shown_token(superlink)) == 403
    for source in (THIS_MACHINE, OPERATOR):
        assert asked(superlink, source, path) == 403  # whoever cannot read the token works under another account
        assert asked(superlink, source, path, shown_token(superlink)) in (404, 415)  # not used, no message of Flower's


@pytest.mark.parametrize("headers", FORGED)
def test_no_header_helps_a_stranger(superlink: ServerSettings, headers: dict[str, str]) -> None:
    assert asked(superlink, STRANGER, "/v1/control/start-run", headers | shown_token(superlink)) == 403


def test_no_header_hinders_an_operator(superlink: ServerSettings) -> None:
    token = shown_token(superlink)
    for text in (STRANGER, "unknown"):
        assert asked(superlink, THIS_MACHINE, "/v1/control/start-run", {"X-Forwarded-For": text, **token}) == 415


@pytest.mark.parametrize("path", SITES_PATHS)
def test_what_sites_do_is_open_to_all(superlink: ServerSettings, path: str) -> None:
    for source in (STRANGER, THIS_MACHINE, OPERATOR):
        assert asked(superlink, source, path) == (401 if "push" in path else 415)  # before a large body is read


def gated(
    client: str,
    kind: str = "http",
    path: str = "/v1/control/start-run",
    tokens: Sequence[str] = (TOKEN,),
    host: bytes = b"localhost",
) -> list[str]:
    """What passes the gate of the operators 10.0.0.5 and ::1: the kinds of the messages that come back."""
    said: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        said.append("passed")

    async def send(message: dict[str, Any]) -> None:
        said.append(str(message.get("status", message["type"])))

    async def receive() -> dict[str, Any]:
        return {"type": "http.request"}

    headers = [(b"host", host), *((HEADER.encode(), token.encode()) for token in tokens)]
    scope = {"type": kind, "path": path, "client": (client, 1), "headers": headers, "method": "POST"}
    asyncio.run(Gate(app, ("10.0.0.5", "::1"), TOKEN, 1 << 20)(scope, receive, send))
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
    assert "passed" not in gated("10.0.0.6", kind="websocket", path="/v1/fleet/pull-messages")
    assert gated("10.0.0.6", kind="lifespan") == ["passed"]


@pytest.mark.parametrize(
    "tokens", [[], [""], ["t"], [TOKEN[:-1]], [TOKEN + "t"], ["x" * 43], [TOKEN, TOKEN], ["", TOKEN]]
)
def test_a_token_is_the_whole_one_and_sent_once(tokens: list[str]) -> None:
    assert gated("10.0.0.5", tokens=tokens)[0] == "403"


@pytest.mark.parametrize("host", [b"localhost/v1/control/start-run?", b"localhost#", b"a@b", b"a b", b"a\\b"])
def test_a_host_cannot_stand_for_another_path(host: bytes) -> None:
    assert gated("10.0.0.6", path="/v1/fleet/pull-messages", host=host)[0] == "400"
    assert gated("10.0.0.6", path="/v1/fleet/pull-messages", host=b"[::1]:9092") == ["passed"]


def test_what_the_gate_passes_is_what_flower_serves() -> None:
    """A path that Flower drops or renames would be refused at the gate, or stand there for nothing."""
    assert set(limits(1)) - {"/health"} <= {path for _, path in PROTOBUF_REQUEST_TYPES}
    served_to_sites = {path for _, path in PROTOBUF_REQUEST_TYPES if path.startswith("/v1/fleet/")}
    assert served_to_sites <= set(limits(1))


def test_a_sites_question_for_admission_is_no_error_in_the_log() -> None:
    def passed(path: str, code: int) -> logging.LogRecord:
        message = f"[{path}][ApiError:{code}] Attempted to register SuperNode"
        record = logging.LogRecord("flwr", logging.ERROR, "", 0, message, None, None)
        assert admission_questions_are_no_errors(record)
        return record

    asked = passed("/v1/fleet/activate-node", 2003)
    assert (asked.levelno, asked.levelname) == (logging.INFO, "INFO")
    assert "dynammo-site doctor" in asked.getMessage()
    for path, code in (("/v1/fleet/activate-node", 2004), ("/v1/fleet/send-node-heartbeat", 2003)):
        other = passed(path, code)
        assert (other.levelno, "Attempted to register" in other.getMessage()) == (logging.ERROR, True)
