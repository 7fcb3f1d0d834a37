"""One SuperLink for all tests of the operator's side, started as an operator starts it."""

from __future__ import annotations

import os
import socket
import ssl
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from client.node_key import new_key_pair
from dynammo_core.processes import process_group
from server.consortium import make_consortium
from server.settings import ServerSettings, load_server

OPERATOR, STRANGER = "127.0.0.9", "127.0.0.2"
"""Addresses of this machine's loopback: one is in `operators`, the other is not. 127.0.0.1 is not there either."""

SECONDS = 120.0


@pytest.fixture(scope="session")
def superlink(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerSettings]:
    """A consortium whose SuperLink runs, in an environment that would have uvicorn believe every header."""
    folder = tmp_path_factory.mktemp("superlink") / "consortium"
    settings = make_consortium(folder, ["localhost"], port=_free_port(), listen="127.0.0.1")
    file = folder / "server.yaml"
    file.write_text(file.read_text().replace('[127.0.0.1, "::1"]', f"[{OPERATOR}]"))
    settings = load_server(folder)
    command = [str(Path(sys.executable).with_name("dynammo-server")), "start", "--folder", folder.name]
    environment = {**os.environ, "FORWARDED_ALLOW_IPS": "*", "FLWR_HOME": "/nonexistent"}
    with (
        (folder.parent / "superlink.out").open("w") as output,
        process_group(command, cwd=folder.parent, environment=environment, output=output) as process,
    ):
        context = ssl.create_default_context(cafile=str(settings.ca_certificate))
        handlers = urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        opener = urllib.request.build_opener(*handlers)
        limit = time.monotonic() + SECONDS
        answered = False
        while not answered:
            assert process.poll() is None, (folder.parent / "superlink.out").read_text()
            assert time.monotonic() < limit
            with suppress(OSError), opener.open(f"https://{settings.address}/health", timeout=5):
                answered = True
            time.sleep(0.1)
        yield settings


@pytest.fixture
def new_key(tmp_path: Path) -> Path:
    """The public key that a site sends; its private key lies beside it."""
    private, public = new_key_pair("site")
    (tmp_path / "site.key").write_bytes(private)
    (tmp_path / "site.key.pub").write_bytes(public)
    return tmp_path / "site.key.pub"


@pytest.fixture
def no_superlink(tmp_path: Path) -> ServerSettings:
    """A consortium whose SuperLink does not run."""
    return make_consortium(tmp_path / "consortium", ["localhost"], port=_free_port(), listen="127.0.0.1")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
