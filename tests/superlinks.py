"""A consortium whose SuperLink runs, started as an operator starts it, and connections to it from any address."""

from __future__ import annotations

import http.client
import os
import socket
import ssl
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE

from dynammo_core.support.processes import process_group
from server.consortium.consortium import make_consortium
from server.consortium.settings import ServerSettings, load_server
from server.gate.operator_token import HEADER, read_token

THIS_MACHINE, OPERATOR, STRANGER = "127.0.0.1", "127.0.0.9", "127.0.0.2"
"""Addresses of this machine's loopback: the first two are operators', the server's own without being in `operators`."""

SECONDS = 120.0
MEGABYTE = 1 << 20
PROTOBUF = {"content-type": PROTOBUF_MEDIA_TYPE}
Headers = dict[str, str]


@contextmanager
def running_superlink(folder: Path) -> Iterator[ServerSettings]:
    """A consortium in a new folder, its SuperLink in an environment that would have uvicorn believe every header."""
    settings = make_consortium(folder, ["localhost"], port=free_port(), listen="127.0.0.1")
    file = folder / "server.yaml"
    file.write_text(file.read_text().replace('[127.0.0.1, "::1"]', f"[{OPERATOR}]"))
    settings = load_server(folder)
    command = [str(Path(sys.executable).with_name("dynammo-server")), "start", "--folder", folder.name]
    environment = {**os.environ, "FORWARDED_ALLOW_IPS": "*", "FLWR_HOME": "/nonexistent"}
    with (
        (folder.parent / "superlink.out").open("w") as output,
        process_group(command, cwd=folder.parent, environment=environment, output=output) as process,
    ):
        handlers = urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=trusting(settings))
        opener = urllib.request.build_opener(*handlers)
        limit = time.monotonic() + SECONDS
        answered = False
        while not answered:
            assert process.poll() is None, (folder.parent / "superlink.out").read_text()
            assert time.monotonic() < limit
            with suppress(OSError), opener.open(f"https://{settings.address}/health", timeout=5):
                answered = True
            time.sleep(0.1)
        (folder.parent / "superlink.pid").write_text(str(process.pid))
        yield settings


def trusting(settings: ServerSettings) -> ssl.SSLContext:
    """What a site trusts."""
    return ssl.create_default_context(cafile=str(settings.ca_certificate))


def connected(settings: ServerSettings, source: str = STRANGER, timeout: float = 60.0) -> http.client.HTTPSConnection:
    """A connection from an address of this machine."""
    return http.client.HTTPSConnection(
        "127.0.0.1", settings.port, context=trusting(settings), source_address=(source, 0), timeout=timeout
    )


def shown_token(settings: ServerSettings) -> dict[str, str]:
    """The header that an operator's programs send."""
    return {HEADER: read_token(settings.operator_token)}


def status_of(
    settings: ServerSettings, path: str, headers: Headers | None = None, body: bytes = b"", source: str = STRANGER
) -> int:
    """HTTP status of one request."""
    connection = connected(settings, source)
    try:
        connection.request("POST", path, body=body, headers=PROTOBUF | (headers or {}))
        return connection.getresponse().status
    finally:
        connection.close()


def raw_socket(settings: ServerSettings, source: str = STRANGER) -> ssl.SSLSocket:
    """A connection of which only the encryption is done."""
    plain = socket.create_connection(("127.0.0.1", settings.port), timeout=60, source_address=(source, 0))
    return trusting(settings).wrap_socket(plain, server_hostname="localhost")


def raw(settings: ServerSettings, request: bytes, source: str = OPERATOR) -> bytes:
    """All that comes back for bytes that no HTTP library would send."""
    answer = b""
    with suppress(OSError), raw_socket(settings, source) as opened:
        opened.sendall(request)
        while part := opened.recv(MEGABYTE):
            answer += part
    return answer


def free_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
