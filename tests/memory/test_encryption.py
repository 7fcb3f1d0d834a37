"""Keys: made once, read by their owner alone, and never shown; and the cipher, against the standard's own example."""

from __future__ import annotations

import base64
import errno
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

import keyring
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st
from keyring.backend import KeyringBackend
from keyring.errors import KeyringLocked

from dynammo_core.memory.encryption import CHUNK, Decryption, encrypt, fingerprint, load_key, new_key_file
from dynammo_core.support.errors import ConfigError

KEY = bytes(range(200, 232))


def key_file(folder: Path, text: str, mode: int = 0o600) -> Path:
    path = folder / "memory.key"
    path.write_text(text)
    path.chmod(mode)
    return path


def refusal(spec: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_key(spec)
    return str(caught.value)


def decrypted(sealed: bytes, associated: bytes, key: bytes, chunk: int) -> bytes | None:
    opening = Decryption(sealed[:12], associated, key)
    body = memoryview(bytearray(sealed[12:-16]))
    content = bytearray(len(body))
    for start in range(0, len(body), chunk):
        opening.take(body[start : start + chunk], memoryview(content)[start : start + chunk])
    return bytes(content) if opening.finish(sealed[-16:]) else None


def test_the_standards_example_decrypts() -> None:
    """McGrew and Viega, The Galois/Counter Mode of Operation, test case 16: AES-256 with associated data."""
    key = bytes.fromhex("feffe9928665731c6d6a8f9467308308" * 2)
    nonce = bytes.fromhex("cafebabefacedbaddecaf888")
    associated = bytes.fromhex("feedfacedeadbeeffeedfacedeadbeefabaddad2")
    plain = (
        "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72"
        "1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39"
    )
    sealed = (
        "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa"
        "8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662"
        "76fc6ece0f4e1768cddf8853bb2d551b"
    )
    assert decrypted(nonce + bytes.fromhex(sealed), associated, key, 7) == bytes.fromhex(plain)


@given(content=st.binary(max_size=200), associated=st.binary(max_size=20), chunk=st.integers(1, 64))
def test_what_is_encrypted_decrypts_here_and_elsewhere(content: bytes, associated: bytes, chunk: int) -> None:
    sealed = b"".join(encrypt(content, associated, KEY))
    assert AESGCM(KEY).decrypt(sealed[:12], sealed[12:], associated) == content
    assert decrypted(sealed, associated, KEY, chunk) == content
    assert decrypted(sealed, associated + b"x", KEY, chunk) is None
    assert decrypted(sealed, associated, KEY[::-1], chunk) is None


def test_more_than_one_chunk() -> None:
    content = os.urandom(16) * (CHUNK // 8)
    sealed = b"".join(encrypt(content, b"", KEY))
    assert AESGCM(KEY).decrypt(sealed[:12], sealed[12:], b"") == content


def test_a_new_key_file_is_read_back_and_no_two_are_alike(tmp_path: Path) -> None:
    paths = [tmp_path / "new" / name for name in ("one.key", "two.key")]
    for path in paths:
        new_key_file(path)
        assert path.stat().st_mode & 0o777 == 0o600
        assert load_key(f"file:{path}") == base64.b64decode(path.read_bytes())
    assert load_key(f"file:{paths[0]}") != load_key(f"file:{paths[1]}")


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    for path in (key_file(tmp_path, "precious"), tmp_path):
        with pytest.raises(ConfigError, match=r"exists already.*Name another file"):
            new_key_file(path)
    assert (tmp_path / "memory.key").read_text() == "precious"


def test_a_key_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(ConfigError, match="cannot be written: File exists"):
        new_key_file(key_file(tmp_path, "a file") / "below")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ConfigError, match="cannot be written: No space left on device"):
        new_key_file(tmp_path / "new.key")
    assert [path.name for path in tmp_path.iterdir()] == ["memory.key"]


@pytest.mark.parametrize("text", [base64.b64encode(KEY).decode(), f"  {base64.b64encode(KEY).decode()}\r\n"])
def test_a_key_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    assert load_key(f"file:{key_file(tmp_path, text)}") == KEY
    monkeypatch.setenv("MEMORY_KEY", text)
    assert load_key("env:MEMORY_KEY") == KEY


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "0 bytes"),
        (base64.b64encode(KEY[:16]).decode(), "16 bytes"),
        (base64.b64encode(KEY + b"x").decode(), "33 bytes"),
        (KEY.hex(), "48 bytes"),  # 64 hexadecimal digits are base64, of 64 * 6 / 8 bytes
        ("correct horse battery staple", "28 characters that are not base64"),
        (base64.b64encode(KEY).decode()[:-1], "43 characters that are not base64"),
        ("ü" * 16, "32 characters that are not base64"),
        (base64.b64encode(bytes(2000)).decode(), "768 bytes"),  # no more than 1024 characters are read
    ],
)
def test_what_is_no_key_is_named_but_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, found: str
) -> None:
    path = key_file(tmp_path, text)
    said = refusal(f"file:{path}")
    assert f"the key file {path} holds {found}. Accepted: 32 random bytes in base64. Make one by" in said
    assert f"umask 077; openssl rand -base64 32 > {path}" in said
    assert not text or text not in said
    if len(text) < 1024:
        monkeypatch.setenv("MEMORY_KEY", text)
        said = refusal("env:MEMORY_KEY")
        assert f"the environment variable MEMORY_KEY holds {found}" in said
        assert not text or text not in said


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o660, 0o644, 0o601])
def test_a_key_that_others_may_read_or_change_is_refused(tmp_path: Path, mode: int) -> None:
    path = key_file(tmp_path, base64.b64encode(KEY).decode(), mode)
    assert f"others may read the key file {path} (mode {mode:o}). Run `chmod 600 {path}`" in refusal(f"file:{path}")
    path.chmod(0o400)
    assert load_key(f"file:{path}") == KEY


def test_no_key_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = tmp_path / "missing"
    assert f"the key file {missing} cannot be read: No such file" in refusal(f"file:{missing}")
    assert f"openssl rand -base64 32 > {missing}" in refusal(f"file:{missing}")
    assert "cannot be read: Is a directory" in refusal(f"file:{tmp_path}")
    monkeypatch.delenv("MEMORY_KEY", raising=False)
    assert "the environment variable MEMORY_KEY is not set. Accepted: 32 random bytes" in refusal("env:MEMORY_KEY")


@pytest.mark.parametrize("spec", ["", "memory.key", "file:", "env:", "keyring:x", base64.b64encode(KEY).decode()])
def test_a_key_has_a_place(spec: str) -> None:
    said = refusal(spec)
    assert said == "memory.key names no place where a key is. Accepted: file:PATH, env:NAME or keyring:SERVICE/ACCOUNT."


class OwnKeyring(KeyringBackend):
    """A keyring in this process, by the interface that every system's keyring has."""

    priority = 1  # type: ignore[assignment]
    locked = False

    def __init__(self) -> None:
        super().__init__()
        self.held: dict[tuple[str, str], str] = {}

    def get_password(self, service: str, username: str) -> str | None:
        if self.locked:
            raise KeyringLocked("no")
        return self.held.get((service, username))

    def set_password(self, service: str, username: str, password: str) -> None:
        self.held[service, username] = password

    def delete_password(self, service: str, username: str) -> None:
        del self.held[service, username]


def test_a_key_from_the_keyring_of_the_system() -> None:
    before, own = keyring.get_keyring(), OwnKeyring()
    keyring.set_keyring(own)
    try:
        assert "has nothing for st-elsewhere under dynammo" in refusal("keyring:dynammo/st-elsewhere")
        keyring.set_password("dynammo", "st-elsewhere", base64.b64encode(KEY).decode())
        assert load_key("keyring:dynammo/st-elsewhere") == KEY
        keyring.set_password("dynammo", "st-elsewhere", "short")
        message = refusal("keyring:dynammo/st-elsewhere")
        assert "the keyring's dynammo/st-elsewhere holds" in message and "short" not in message
        own.locked = True
        assert "cannot be read (KeyringLocked)" in refusal("keyring:dynammo/st-elsewhere")
    finally:
        keyring.set_keyring(before)


def test_without_the_package_a_keyring_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "keyring", None)
    assert "pip install '.[keyring]'" in refusal("keyring:dynammo/st-elsewhere")


def test_a_fingerprint_tells_keys_apart_and_nothing_of_them() -> None:
    assert len({fingerprint(bytes([i]) * 32) for i in range(256)}) == 256
    assert fingerprint(KEY) == fingerprint(bytes(KEY))
    assert len(fingerprint(KEY)) == 8
    assert fingerprint(KEY) not in KEY.hex()
