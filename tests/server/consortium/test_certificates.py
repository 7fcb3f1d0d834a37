"""The consortium's certificates in real TLS handshakes on loopback: who is believed, for how long, and by whom."""

from __future__ import annotations

import hashlib
import shutil
import socket
import ssl
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from dynammo_core.support.errors import ConfigError
from server.consortium.certificates import expires, fingerprint, make_authority, make_server_certificate

HOSTS = ["fl.example.org", "10.1.2.3", "2001:db8::1"]
LONG = "superlink.federation.department-of-dermatology.university-hospital.example.org"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("authority")
    make_authority(folder / "ca.pem", folder / "ca.key", HOSTS[0])
    sign(folder, folder)
    return folder


def sign(authority: Path, folder: Path, days: int = 30, hosts: list[str] = HOSTS) -> None:
    make_server_certificate(
        folder / "server.pem",
        folder / "server.key",
        ca_certificate=authority / "ca.pem",
        ca_key=authority / "ca.key",
        host_names=hosts,
        days=days,
    )


def handshake(served: Path, trusted: Path, name: str) -> str:
    """A client that trusts `trusted` alone meets a server with the files in `served`: "" or why it turns away."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(served / "server.pem", served / "server.key")
    client = ssl.create_default_context(cafile=str(trusted / "ca.pem"))
    client.verify_flags |= ssl.VERIFY_X509_STRICT  # as Python does from 3.13 on
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            connection, _ = listening.accept()
            try:
                with server.wrap_socket(connection, server_side=True) as encrypted:
                    encrypted.sendall(b"hello")
            except (ssl.SSLError, OSError):
                connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            with (
                socket.create_connection(listening.getsockname(), timeout=10) as plain,
                client.wrap_socket(plain, server_hostname=name) as encrypted,
            ):
                assert encrypted.recv(5) == b"hello"
            return ""
        except ssl.SSLCertVerificationError as error:
            return error.verify_message
        finally:
            thread.join(10)


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", *HOSTS])
def test_the_server_is_believed_under_each_of_its_names(authority: Path, name: str) -> None:
    assert handshake(authority, authority, name) == ""


@pytest.mark.parametrize("name", ["example.org", "other.example.org", "10.1.2.4", "127.0.0.2", "2001:db8::2"])
def test_under_another_name_it_is_not(authority: Path, name: str) -> None:
    assert "mismatch" in handshake(authority, authority, name)


def test_another_authority_is_not_believed(authority: Path, tmp_path: Path) -> None:
    make_authority(tmp_path / "ca.pem", tmp_path / "ca.key", HOSTS[0])
    sign(tmp_path, tmp_path)
    assert handshake(tmp_path, tmp_path, "localhost") == ""
    # Of the same name, but not of the same key.
    assert handshake(tmp_path, authority, "localhost")
    assert handshake(authority, tmp_path, "localhost")


def test_an_expired_certificate_is_refused_until_it_is_renewed(authority: Path, tmp_path: Path) -> None:
    sign(authority, tmp_path, days=-1)
    assert "expired" in handshake(tmp_path, authority, "localhost")
    assert expires(tmp_path / "server.pem") < datetime.now(UTC)
    sign(authority, tmp_path, days=1)
    assert handshake(tmp_path, authority, "localhost") == ""


def test_the_authority_signs_for_ten_years_and_a_server_for_the_days_asked_for(authority: Path) -> None:
    now = datetime.now(UTC)
    minute = timedelta(minutes=1)
    assert abs(expires(authority / "ca.pem") - now - timedelta(days=3650)) < minute
    assert abs(expires(authority / "server.pem") - now - timedelta(days=30)) < minute


def test_a_server_is_no_authority(authority: Path, tmp_path: Path) -> None:
    """Whoever holds the server's key cannot make others that sites believe."""
    forged = tmp_path / "forged"
    for name, stolen in {"ca.pem": "server.pem", "ca.key": "server.key"}.items():
        shutil.copy(authority / stolen, tmp_path / name)
    sign(tmp_path, forged)
    chain = (forged / "server.pem").read_bytes() + (authority / "server.pem").read_bytes()
    (forged / "server.pem").write_bytes(chain)
    assert handshake(forged, authority, "localhost")


def test_keys_are_their_owners_alone(authority: Path) -> None:
    modes = {file.name: file.stat().st_mode & 0o777 for file in authority.iterdir()}
    assert modes == {"ca.key": 0o600, "server.key": 0o600, "ca.pem": 0o644, "server.pem": 0o644}


def test_a_name_longer_than_a_subject_may_be(tmp_path: Path) -> None:
    assert len(LONG) > 64  # X.520's bound
    make_authority(tmp_path / "ca.pem", tmp_path / "ca.key", LONG)
    sign(tmp_path, tmp_path, hosts=[LONG])
    assert handshake(tmp_path, tmp_path, LONG) == ""


def missing(folder: Path) -> None:
    (folder / "ca.key").unlink()


def foreign(folder: Path) -> None:
    make_authority(folder / "other.pem", folder / "ca.key", HOSTS[0])


def damaged(folder: Path) -> None:
    (folder / "ca.key").write_text("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")


def swapped(folder: Path) -> None:
    shutil.copy(folder / "ca.key", folder / "ca.pem")


@pytest.mark.parametrize("spoil", [missing, foreign, damaged, swapped])
def test_an_authority_that_cannot_sign_changes_nothing(
    authority: Path, tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    shutil.copytree(authority, tmp_path, dirs_exist_ok=True)
    before = (tmp_path / "server.pem").read_bytes(), (tmp_path / "server.key").read_bytes()
    spoil(tmp_path)
    with pytest.raises(ConfigError, match=r"cannot sign.*Restore its key"):
        sign(tmp_path, tmp_path)
    assert ((tmp_path / "server.pem").read_bytes(), (tmp_path / "server.key").read_bytes()) == before


def test_the_fingerprint_is_the_one_that_others_compute(authority: Path) -> None:
    der = ssl.PEM_cert_to_DER_cert((authority / "ca.pem").read_text())
    assert fingerprint(authority / "ca.pem").replace(":", "") == hashlib.sha256(der).hexdigest()


@pytest.mark.parametrize("content", [None, b"", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_a_file_without_certificate_is_named(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "server.pem"
    if content is not None:
        file.write_bytes(content)
    for ask in (expires, fingerprint):
        with pytest.raises(ConfigError, match=r"server.pem is not a valid certificate.*renew"):
            ask(file)
