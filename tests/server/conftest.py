"""One SuperLink for all tests of the operator's side, started as an operator starts it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from superlinks import free_port, running_superlink

from client.state.node_key import new_key_pair
from server.consortium.consortium import make_consortium
from server.consortium.settings import ServerSettings


@pytest.fixture(scope="session")
def superlink(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerSettings]:
    """A consortium whose SuperLink runs."""
    with running_superlink(tmp_path_factory.mktemp("superlink") / "consortium") as settings:
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
    return make_consortium(tmp_path / "consortium", ["localhost"], port=free_port(), listen="127.0.0.1")
