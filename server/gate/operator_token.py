"""The operator's token: a file that only the consortium's account can read, and the header that carries its content.

An address identifies a machine, not an account on it. The token proves that the caller can read the file: that it is
the account that runs the server, or the administrator.
"""

from __future__ import annotations

import hmac
import os
import secrets
from collections.abc import Iterable
from pathlib import Path

from dynammo_core.support.errors import ConfigError

HEADER = "dynammo-operator"
FILE_VARIABLE = "DYNAMMO_OPERATOR_TOKEN_FILE"
TOKEN_BYTES = 32


def make_token(file: Path) -> None:
    """Write a new token into `file`, unless it holds one.

    Raises:
        ConfigError: the file cannot be written, or another account may read it.
    """
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as opened:
            opened.write(secrets.token_urlsafe(TOKEN_BYTES) + "\n")
    except FileExistsError:
        read_token(file)
    except OSError as error:
        raise ConfigError(
            f"cannot write {file}: {error.strerror}", remedy="Give this account write permission for its folder"
        ) from error


def read_token(file: Path) -> str:
    """Return the token in `file`.

    Raises:
        ConfigError: the file is missing, too short, or another account may read or write it.
    """
    try:
        mode, token = file.stat().st_mode & 0o777, file.read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"the operator's token {file} cannot be read ({error})",
            remedy="Use the account that runs the server; if the file is missing, `dynammo-server start` creates one",
        ) from error
    if mode & 0o077:
        raise ConfigError(
            f"other accounts may read or write the operator's token {file} (mode {mode:04o})",
            accepted="mode 0600",
            remedy=f"Delete it, since others may know it, and restart the server, which creates a new {file.name}",
        )
    if len(token) < TOKEN_BYTES:
        raise ConfigError(
            f"{file} is not a valid token: it has {len(token)} characters",
            accepted=f"{TOKEN_BYTES} or more",
            remedy="Delete it and restart the server, which creates another",
        )
    return token


def shows_token(headers: Iterable[tuple[bytes, bytes]], token: str) -> bool:
    """Return whether an HTTP request carries the token, compared in a time that does not depend on what was sent."""
    shown = [value for name, value in headers if name.lower() == HEADER.encode()]
    return len(shown) == 1 and hmac.compare_digest(shown[0], token.encode())
