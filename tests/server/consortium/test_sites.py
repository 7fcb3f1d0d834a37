"""Registering sites at a real SuperLink: who gets in under which name, and every way of getting it wrong."""

from __future__ import annotations

import json
import subprocess
from base64 import b64encode
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from site_bench import make_site
from superlinks import PROTOBUF, connected

from client.consent.settings import load_site
from client.doctor.connection import connection_findings, refusal
from client.state.node_key import load_private_key, new_key_pair
from dynammo_core.support.errors import CheckpointError, ConfigError, RunError
from server.consortium.control import Control
from server.consortium.settings import ServerSettings
from server.consortium.sites import RegisteredSite, SiteRegister, fingerprint


def register_of(settings: ServerSettings) -> SiteRegister:
    return SiteRegister(settings, Control(settings))


@pytest.fixture
def written(no_superlink: ServerSettings, new_key: Path) -> SiteRegister:
    """A register with one site in it, whose SuperLink does not run: what is refused, is refused before asking it."""
    site = {"node": 1, "fingerprint": fingerprint(new_key), "added": "2026-01-31"}
    no_superlink.sites.write_text(json.dumps({"st-elsewhere": site}))
    return register_of(no_superlink)


@pytest.fixture
def other_key(tmp_path: Path) -> Path:
    file = tmp_path / "other.key.pub"
    file.write_bytes(new_key_pair("other")[1])
    return file


def refused(register: SiteRegister, name: str, key: Path) -> str:
    before = register.load()
    with pytest.raises(ConfigError) as caught:
        register.add(name, key)
    assert register.load() == before
    return str(caught.value)


def test_a_name_that_is_taken(written: SiteRegister, other_key: Path) -> None:
    message = refused(written, "st-elsewhere", other_key)
    assert message.startswith("the name is taken by the site 'st-elsewhere', registered on 2026-01-31")
    assert "`dynammo-server sites remove st-elsewhere` first" in message


def test_a_key_that_is_taken(written: SiteRegister, new_key: Path) -> None:
    message = refused(written, "general", new_key)
    assert message.startswith("this key is taken by the site 'st-elsewhere'")
    assert fingerprint(new_key) in message


@pytest.mark.parametrize("name", ["", "A", "a b", "-a", "a/b", "..", "ä", "a_b", "a" * 64, "a\n", "--help"])
def test_names_that_are_no_names(written: SiteRegister, other_key: Path, name: str) -> None:
    assert "is not a valid site name. Accepted: small letters, digits and hyphens" in refused(written, name, other_key)


def test_the_private_key_is_not_taken(written: SiteRegister, other_key: Path, tmp_path: Path) -> None:
    (tmp_path / "private").write_bytes(new_key_pair("x")[0])
    message = refused(written, "general", tmp_path / "private")
    assert "not the public key of a site" in message
    assert "the private site.key never leaves a site" in message


def edwards() -> bytes:
    key = ed25519.Ed25519PrivateKey.generate().public_key()
    return key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)


def pem() -> bytes:
    key = ec.generate_private_key(ec.SECP384R1()).public_key()
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


@pytest.mark.parametrize(
    "content",
    [None, b"", b"hello", b"ssh-rsa AAAA", b"\xff\xfe", pem(), edwards()],
    ids=["no file", "empty", "text", "cut off", "bytes", "PEM", "another curve"],
)
def test_what_is_no_key_of_a_site(written: SiteRegister, tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "sent.pub").write_bytes(content)
    message = refused(written, "general", tmp_path / "sent.pub")
    assert "sent.pub is not the public key of a site" in message
    assert "site.key.pub that `dynammo-site init` made" in message


def test_removing_an_unknown_name(written: SiteRegister) -> None:
    with pytest.raises(ConfigError, match=r"unknown site 'st-elswhere' \(did you mean 'st-elsewhere'\?\)"):
        written.remove("st-elswhere")


@pytest.mark.parametrize("content", ["", "[]", '{"a": 1}', '{"a": {"node": 1}}', "{"])
def test_a_damaged_register(written: SiteRegister, no_superlink: ServerSettings, content: str) -> None:
    no_superlink.sites.write_text(content)
    with pytest.raises(ConfigError, match=r"sites.json cannot be read.*Restore it from a backup"):
        written.load()


def test_the_fingerprint_is_what_ssh_keygen_prints(new_key: Path) -> None:
    try:
        listed = subprocess.run(["ssh-keygen", "-lf", str(new_key)], capture_output=True, text=True, check=True).stdout
    except FileNotFoundError:
        pytest.skip("no ssh-keygen here")
    assert fingerprint(new_key) == listed.split()[1]


def test_without_a_superlink_nothing_is_registered(written: SiteRegister, other_key: Path) -> None:
    before = written.load()
    with pytest.raises(RunError) as caught:
        written.add("general", other_key)
    assert "the SuperLink at 127.0.0.1:" in str(caught.value)
    assert "start it with `dynammo-server start`" in str(caught.value)
    assert written.load() == before


@pytest.mark.slow
def test_a_site_comes_and_goes(superlink: ServerSettings, new_key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    control = Control(superlink)
    register = SiteRegister(superlink, control)
    monkeypatch.chdir(new_key.parent)  # an operator names the file as it lies before him
    site = register.add("general", Path(new_key.name))
    assert register.load() == {"general": site}
    assert site.fingerprint == fingerprint(new_key)

    assert register.with_status() == {"general": (site, "registered", "")}
    register.remove("general")
    assert register.load() == {}
    assert site.node not in control.nodes()
    with pytest.raises(ConfigError, match="a key that was removed stays refused"):
        register.add("general", Path(new_key.name))


@pytest.mark.slow
def test_a_key_whose_site_cannot_be_written_down_is_not_let_in(
    superlink: ServerSettings, new_key: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    control = Control(superlink)
    before = control.nodes()
    (tmp_path / "file").write_text("no folder")
    elsewhere = SiteRegister(superlink, control)
    monkeypatch.setattr(elsewhere, "_file", tmp_path / "file" / "sites.json")
    with pytest.raises(CheckpointError, match="cannot write"):
        elsewhere.add("general", new_key)
    assert control.nodes() == before


def test_a_site_that_the_superlink_forgot_can_be_removed(superlink: ServerSettings) -> None:
    """Such as after Flower's database was lost: the register must not be stuck with it."""
    register = register_of(superlink)
    register._save({"lost": RegisteredSite(424242, "SHA256:x", "2026-01-31")})
    register.remove("lost")
    assert register.load() == {}


def test_a_site_learns_that_it_is_registered_under_another_name(superlink: ServerSettings, tmp_path: Path) -> None:
    """Otherwise it would be connected, and fail with every run's first step."""
    place = f"localhost:{superlink.port}"
    settings, site_yaml = make_site(tmp_path / "site", place, superlink.ca_certificate, site="mercey")
    register = register_of(superlink)
    assert "is not registered" in connection_findings(settings)[-1].what
    register.add("mercy", tmp_path / "site" / "site.key.pub")
    refused = refusal(settings)
    assert refused is not None
    assert refused.check == "authentication"
    assert "is registered as the site 'mercy', and site.yaml says 'mercey'" in refused.what
    site_yaml.write_text(site_yaml.read_text().replace("mercey", "mercy"))
    assert refusal(load_site(site_yaml)) is None
    connection = connected(superlink)  # of somebody who knows the key that is public, and no other
    pem = (
        load_private_key(settings.private_key)
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    shown = {"flwr-public-key": b64encode(pem).decode(), "flwr-signature": b64encode(b"none").decode()}
    headers = PROTOBUF | shown | {"flwr-timestamp": datetime.now(UTC).isoformat()}
    connection.request("POST", "/v1/fleet/activate-node", headers=headers)
    assert "dynammo-site" not in dict(connection.getresponse().getheaders())
    connection.close()
