"""Files in which no change goes unnoticed: encrypted under a key, with a checksum where there is none.

A sealed file is a line of JSON, which anybody may read and nobody may change (whose file this is, how it is sealed),
then the content and a tag over both: of AES-256-GCM, with the line as associated data, or a SHA-256.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Protocol

from dynammo_core.memory.encryption import CHUNK, NONCE_BYTES, Decryption, encrypt, fingerprint
from dynammo_core.support.errors import MemoryStoreError

FORMAT = "dynammo-sealed-1"
LONGEST_LINE = 4096


@dataclass(frozen=True)
class Header:
    """The first line of a sealed file.

    Attributes:
        owner: whose content it is, such as run and site.
        key: fingerprint of the key it is encrypted with; None for a plain file.
    """

    owner: Mapping[str, str]
    key: str | None

    def line(self) -> bytes:
        """As it stands in the file."""
        cipher = "none" if self.key is None else "aes-256-gcm"
        fields = {"format": FORMAT, "cipher": cipher, "key": self.key, "owner": dict(self.owner)}
        return json.dumps(fields).encode() + b"\n"

    @staticmethod
    def parse(line: bytes) -> Header:
        """The header that was written as `line`, byte for byte.

        Raises:
            ValueError: there is none.
        """
        try:
            fields = json.loads(line)
            owner = {str(name): str(value) for name, value in fields["owner"].items()}
            header = Header(owner, None if fields["key"] is None else str(fields["key"]))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            header = None
        if header is None or header.line() != line:
            raise ValueError("it does not begin as a sealed file does")
        return header


def seal(content: bytes, owner: Mapping[str, str], key: bytes | None) -> bytes:
    """The sealed file of `content`, bound to its owner. Without a key, equal content makes equal files."""
    if key is None:
        line = Header(owner, None).line()
        checksum = hashlib.sha256(line)
        checksum.update(content)
        return b"".join((line, content, checksum.digest()))
    line = Header(owner, fingerprint(key)).line()
    return b"".join((line, *encrypt(content, line, key)))


def read_header(path: Path) -> Header:
    """What a sealed file says of itself; only `unseal` finds out whether it is true.

    Raises:
        MemoryStoreError: it cannot be read, or is no sealed file.
    """
    try:
        with path.open("rb") as file:
            return Header.parse(file.readline(LONGEST_LINE))
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error


def unseal(path: Path, owner: Mapping[str, str], key: bytes | None) -> bytearray:
    """The content of a sealed file, read and decrypted in one pass, straight into the buffer that is returned.

    A site that has a key takes no plain file: whoever can write to its disk could have put one there.

    Raises:
        MemoryStoreError: it cannot be read, has changed, is sealed with another key, with none or with one too many,
            or belongs to another owner.
    """
    try:
        with path.open("rb") as file:
            line = file.readline(LONGEST_LINE)
            header = Header.parse(line)
            _require_fitting_key(path, header, key)
            content = _read(file, _Checksum(line) if key is None else Decryption(file.read(NONCE_BYTES), line, key))
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error
    if header.owner != dict(owner):
        raise MemoryStoreError(
            f"the sealed file {path} belongs to {dict(header.owner)}, not to {dict(owner)}",
            remedy="Give each run and each site a memory folder of its own",
        )
    return content


def unreadable(path: Path, error: Exception) -> MemoryStoreError:
    """The refusal of a file that is not whole."""
    return MemoryStoreError(
        f"the sealed file {path} cannot be read ({type(error).__name__}: {error})",
        remedy="Restore it from a backup; memory.safetensors may be deleted, to go on without its exemplars",
    )


class _Opening(Protocol):
    """Turns the bytes between the line and the tag into the content, chunk by chunk."""

    tag_bytes: int

    def take(self, chunk: memoryview, into: memoryview) -> None: ...

    def finish(self, tag: bytes) -> bool: ...


class _Checksum:
    tag_bytes = hashlib.sha256().digest_size

    def __init__(self, line: bytes) -> None:
        self._hash = hashlib.sha256(line)

    def take(self, chunk: memoryview, into: memoryview) -> None:
        self._hash.update(chunk)
        into[:] = chunk

    def finish(self, tag: bytes) -> bool:
        return self._hash.digest() == tag


def _read(file: BufferedReader, opening: _Opening) -> bytearray:
    size = os.fstat(file.fileno()).st_size - file.tell() - opening.tag_bytes
    if size < 0:
        raise ValueError("it is cut off")
    content, chunk = bytearray(size), memoryview(bytearray(min(CHUNK, size)))
    into, done = memoryview(content), 0
    while done < size:
        count = file.readinto(chunk[: size - done])
        if not count:
            raise ValueError("it is cut off")
        opening.take(chunk[:count], into[done : done + count])
        done += count
    if not opening.finish(file.read()):
        raise ValueError("it is damaged: its bytes are not those that were written")
    return content


def _require_fitting_key(path: Path, header: Header, key: bytes | None) -> None:
    if key is None and header.key is not None:
        raise MemoryStoreError(
            f"the sealed file {path} is encrypted, and this site names no key",
            remedy=f"Set memory.key in site.yaml to the key whose fingerprint is {header.key[:8]}",
        )
    if key is not None and header.key is None:
        raise MemoryStoreError(
            f"the sealed file {path} is not encrypted, and this site has a key",
            remedy="Leave memory.key out of site.yaml until its run has ended, or delete the memory",
        )
    if key is not None and header.key != fingerprint(key):
        raise MemoryStoreError(
            f"the sealed file {path} is encrypted with another key than the one with fingerprint {fingerprint(key)}",
            remedy="Set memory.key in site.yaml to the key it was made with; if that is lost, delete the memory",
        )
