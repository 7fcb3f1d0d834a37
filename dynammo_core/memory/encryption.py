"""AES-256-GCM for one file, and where a site's key comes from. A key never appears in a message or a log."""

from __future__ import annotations

import base64
import hashlib
import os
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import GCM

from dynammo_core.support.errors import ConfigError

KEY_BYTES = 32
NONCE_BYTES = 12
KEY_PLACES = "file:PATH, env:NAME or keyring:SERVICE/ACCOUNT"
CHUNK = 2**20
"""Bytes worked on at a time: they stay in the processor's cache between the disk and their final place."""


def encrypt(content: bytes, associated: bytes, key: bytes) -> list[bytes]:
    """Return nonce, ciphertext in parts, and the tag over it and over `associated`, which stays in the clear.

    The nonce is random, which is safe for 2^32 files under one key (NIST SP 800-38D, section 8.3).
    """
    nonce = os.urandom(NONCE_BYTES)
    encryptor = Cipher(AES256(key), GCM(nonce)).encryptor()
    encryptor.authenticate_additional_data(associated)
    view = memoryview(content)
    parts = [encryptor.update(view[start : start + CHUNK]) for start in range(0, len(view), CHUNK)]
    return [nonce, *parts, encryptor.finalize(), encryptor.tag]


class Decryption:
    """Takes a ciphertext chunk by chunk; nothing of it may be used before `finish` has seen the tag."""

    tag_bytes = 16

    def __init__(self, nonce: bytes, associated: bytes, key: bytes) -> None:
        self._decryptor = Cipher(AES256(key), GCM(nonce)).decryptor()
        self._decryptor.authenticate_additional_data(associated)

    def take(self, chunk: memoryview, into: memoryview) -> None:
        """Decrypt the next bytes into a buffer of their length."""
        self._decryptor.update_into(chunk, into)

    def finish(self, tag: bytes) -> bool:
        """Return whether every byte is as it was encrypted, under this key and with these associated data."""
        try:
            self._decryptor.finalize_with_tag(tag)
        except InvalidTag:
            return False
        return True


def fingerprint(key: bytes) -> str:
    """Return a name for a key that does not reveal it: 8 hexadecimal digits of a hash of its 256 random bits."""
    return hashlib.sha256(b"dynammo memory key\0" + key).hexdigest()[:8]


def load_key(spec: str) -> bytes:
    """Load the 32 bytes that `file:PATH`, `env:NAME` or the system's `keyring:SERVICE/ACCOUNT` holds in base64.

    Raises:
        ConfigError: it names no such place, nothing is there, others may read the file, or the key is invalid.
    """
    kind, _, name = spec.partition(":")
    if kind == "file" and name:
        return _decode(_read_key_file(Path(name)), f"the key file {name}", _how_to_make(name))
    if kind == "env" and name:
        where = f"the environment variable {name}"
        remedy = (
            "Make a key by `openssl rand -base64 32`, keep a copy of it in a safe place, and set the variable to it"
        )
        if name not in os.environ:
            raise ConfigError(f"{where} is not set", accepted=f"{KEY_BYTES} random bytes in base64", remedy=remedy)
        return _decode(os.fsencode(os.environ[name]), where, remedy)
    if kind == "keyring" and all(service_and_account := name.partition("/")[::2]):
        return _decode(_read_keyring(*service_and_account), f"the keyring's {name}", _how_to_keep(*service_and_account))
    raise ConfigError("memory.key names no place where a key is", accepted=KEY_PLACES)


def new_key_file(path: Path) -> None:
    """Write a new random key that its owner alone can read.

    Raises:
        ConfigError: something is there already, which stays as it is, or the file cannot be written.
    """
    if path.exists():
        raise ConfigError(
            f"{path} exists already, and memories may depend on it", remedy="Name another file for the new key"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise ConfigError(f"the key file {path} cannot be written: {error.strerror}") from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(base64.b64encode(os.urandom(KEY_BYTES)) + b"\n")
            file.flush()
            os.fsync(handle)
    except OSError as error:
        path.unlink()
        raise ConfigError(f"the key file {path} cannot be written: {error.strerror}") from error


def _read_key_file(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode & 0o777
            text = file.read(1024)
    except OSError as error:
        what = f"the key file {path} cannot be read: {error.strerror}"
        raise ConfigError(what, remedy=_how_to_make(str(path))) from error
    if mode & 0o077:
        raise ConfigError(f"others may read the key file {path} (mode {mode:o})", remedy=f"Run `chmod 600 {path}`")
    return text


def _read_keyring(service: str, account: str) -> bytes:
    try:
        import keyring
        from keyring.errors import KeyringError
    except ImportError as error:
        raise ConfigError(
            "memory.key names the keyring of the system, and the package keyring is not installed",
            remedy="pip install '.[keyring]' in the checkout, or name another place",
        ) from error
    try:
        secret = keyring.get_password(service, account)
    except KeyringError as error:
        raise ConfigError(
            f"the keyring of the system cannot be read ({type(error).__name__})",
            remedy="Unlock it for the account that runs the site, or keep the key in a file",
        ) from error
    if secret is None:
        what = f"the keyring of the system has nothing for {account} under {service}"
        raise ConfigError(what, remedy=_how_to_keep(service, account))
    return secret.encode()


def _decode(text: bytes, where: str, remedy: str) -> bytes:
    try:
        key = base64.b64decode(text.strip(), validate=True)
        found = f"{len(key)} bytes"
    except ValueError:
        key, found = b"", f"{len(text)} characters that are not base64"
    if len(key) != KEY_BYTES:
        raise ConfigError(f"{where} holds {found}", accepted=f"{KEY_BYTES} random bytes in base64", remedy=remedy)
    return key


def _how_to_keep(service: str, account: str) -> str:
    return f"Give what `openssl rand -base64 32` prints to `keyring set {service} {account}`, and keep a copy of it"


def _how_to_make(path: str) -> str:
    return f"Make one by `(umask 077; openssl rand -base64 32 > {path})`, and keep a copy of it in a safe place"
