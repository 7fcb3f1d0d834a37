"""A consortium's folder: made once, explains itself, never overwritten; what cannot be is refused before anything."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import NoReturn

import pytest
import yaml
from test_certificates import handshake

from dynammo_core.support.errors import ConfigError
from server.consortium.certificates import make_server_certificate
from server.consortium.consortium import make_consortium, renew
from server.consortium.settings import ServerSettings, load_server
from server.consortium.superlink import become_superlink


def make(folder: Path, *hosts: str, port: int = 9092, listen: str = "0.0.0.0") -> ServerSettings:
    return make_consortium(folder, hosts or ("fl.example.org",), port=port, listen=listen)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_it_is_made_as_its_settings_say(tmp_path: Path) -> None:
    settings = make(tmp_path / "a b" / "consortium", "fl.example.org", "10.1.2.3", port=9443)
    folder = tmp_path / "a b" / "consortium"
    assert settings == load_server(folder)
    assert (settings.host_names, settings.port, settings.listen) == (("fl.example.org", "10.1.2.3"), 9443, "0.0.0.0")
    assert settings.operators == ("127.0.0.1", "::1")
    assert set(contents(folder)) == {"ca.pem", "ca.key", "server.pem", "server.key", "server.yaml", "operator.token"}
    assert folder.stat().st_mode & 0o777 == 0o700
    for name in ("fl.example.org", "10.1.2.3", "localhost", "127.0.0.1"):
        assert handshake(folder, folder, name) == ""
    text = (folder / "server.yaml").read_text()
    named = {"host_names", "listen", "port", "operators", "largest_message_megabytes", "track"}
    assert set(yaml.safe_load(text)) == named
    assert sum(line.startswith("#") for line in text.splitlines()) > 5


@pytest.mark.parametrize("name", ["no", "null", "1e3", "2001:db8::1", "10.1.2.3"])
def test_names_that_yaml_takes_for_something_else(tmp_path: Path, name: str) -> None:
    assert make(tmp_path / "consortium", name, listen="::").host_names == (name,)


@pytest.mark.parametrize(
    ("listen", "address", "certified"),
    [
        ("0.0.0.0", "127.0.0.1:9092", "127.0.0.1"),
        ("127.0.0.1", "127.0.0.1:9092", "127.0.0.1"),
        ("10.8.0.1", "10.8.0.1:9092", "10.8.0.1"),
        ("::", "[::1]:9092", "::1"),
    ],
)
def test_its_own_programs_find_it_where_it_listens(tmp_path: Path, listen: str, address: str, certified: str) -> None:
    settings = make(tmp_path / "consortium", listen=listen)
    assert settings.address == address
    assert handshake(settings.folder, settings.folder, certified) == ""


def test_what_is_there_is_not_overwritten(tmp_path: Path) -> None:
    folder = make(tmp_path / "consortium").folder
    before = contents(folder)
    with pytest.raises(ConfigError, match=r"is not empty.*`dynammo-server start`"):
        make(folder)
    assert contents(folder) == before


def test_a_file_in_its_place(tmp_path: Path) -> None:
    (tmp_path / "consortium").write_text("mine")
    with pytest.raises(ConfigError, match="cannot be created: File exists"):
        make(tmp_path / "consortium")
    assert (tmp_path / "consortium").read_text() == "mine"


@pytest.mark.parametrize(
    ("hosts", "port", "listen", "words"),
    [
        (["https://fl.example.org"], 9092, "0.0.0.0", "without scheme and port"),
        (["fl.example.org:9092"], 9092, "0.0.0.0", "without scheme and port"),
        (["fl.example.org", "a b"], 9092, "0.0.0.0", "'a b' is not a valid host name"),
        (["kränkenhaus.example"], 9092, "0.0.0.0", "is not a valid host name"),
        ([""], 9092, "0.0.0.0", "'' is not a valid host name"),
        ([], 9092, "0.0.0.0", "host_names"),
        (["fl.example.org"], 0, "0.0.0.0", "port"),
        (["fl.example.org"], 65536, "0.0.0.0", "port"),
        (["fl.example.org"], 9092, "localhost", "'localhost' is not a valid address"),
    ],
)
def test_wrong_values_leave_nothing_behind(
    tmp_path: Path, hosts: list[str], port: int, listen: str, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        make_consortium(tmp_path / "consortium", hosts, port=port, listen=listen)
    assert not (tmp_path / "consortium").exists()


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("port: 9092", "prot: 9092", "line 12, prot: unknown key .did you mean 'port'"),
        ("port: 9092", "port: many", "line 12, port"),
        (
            "operators: [127.0.0.1,",
            "operators: [10.0.0.0/8,",
            "line 14, operators.*'10.0.0.0/8' is not a valid address",
        ),
        ("host_names:", "names:", "names: unknown key"),
    ],
)
def test_mistakes_in_server_yaml_are_named(tmp_path: Path, old: str, new: str, words: str) -> None:
    file = make(tmp_path / "consortium").folder / "server.yaml"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    with pytest.raises(ConfigError, match=words):
        load_server(file.parent)


def test_no_consortium_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no consortium in .*dynammo-server init.*--folder"):
        load_server(tmp_path)


def test_renewing_keeps_the_authority_and_so_the_sites_trust(tmp_path: Path) -> None:
    settings = make(tmp_path / "consortium")
    before = contents(settings.folder)
    renew(settings)
    after = contents(settings.folder)
    assert {name for name in before if before[name] != after[name]} == {"server.pem", "server.key"}
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "ca.pem").write_bytes(before["ca.pem"])
    assert handshake(settings.folder, tmp_path / "site", "fl.example.org") == ""
    assert settings.key.stat().st_mode & 0o777 == 0o600


def test_names_that_are_added_hold_from_the_next_renewal(tmp_path: Path) -> None:
    settings = make(tmp_path / "consortium")
    assert handshake(settings.folder, settings.folder, "new.example.org")
    renew(settings.model_copy(update={"host_names": ("fl.example.org", "new.example.org")}))
    assert handshake(settings.folder, settings.folder, "new.example.org") == ""


# --- what cannot start


@pytest.fixture
def stays_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """A refusal that fails to come must not turn the tests into a SuperLink."""

    def refuse(*_: object) -> NoReturn:
        raise AssertionError("it would have started")

    monkeypatch.setattr(os, "execve", refuse)
    monkeypatch.setattr(os, "chdir", refuse)


def started(settings: ServerSettings) -> str:
    with pytest.raises(ConfigError) as caught:
        become_superlink(settings)
    return str(caught.value)


@pytest.mark.usefixtures("stays_here")
@pytest.mark.parametrize("name", ["ca.pem", "server.pem", "server.key"])
def test_it_does_not_start_without_its_files(tmp_path: Path, name: str) -> None:
    settings = make(tmp_path / "consortium")
    (settings.folder / name).unlink()
    assert f"{settings.folder / name} is missing" in started(settings)


@pytest.mark.usefixtures("stays_here")
def test_it_does_not_start_with_an_expired_or_damaged_certificate(tmp_path: Path) -> None:
    settings = make(tmp_path / "consortium")
    files = {"ca_certificate": settings.ca_certificate, "ca_key": settings.ca_key, "host_names": ["fl.example.org"]}
    make_server_certificate(settings.certificate, settings.key, **files, days=-1)  # type: ignore[arg-type]
    assert "expired on" in started(settings)
    assert "Renew it with `dynammo-server renew`" in started(settings)
    settings.certificate.write_text("nothing")
    assert "is not a valid certificate" in started(settings)


@pytest.mark.usefixtures("stays_here")
def test_a_port_that_is_taken_is_said_in_one_line(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        settings = make(tmp_path / "consortium", port=other.getsockname()[1], listen="127.0.0.1")
        words = started(settings)
    assert f"cannot listen on {settings.listen}:{settings.port} (Address already in use)" in words
    assert "runs already" in words and str(settings.folder / "server.yaml") in words
