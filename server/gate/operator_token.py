"""The operator's token: a file that only the consortium's account can read, and the header that carries its content.

An address tells which machine calls, not which account on it. Whoever sends the token can read the file, so it is the
account that runs the server, or the administrator.
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
            f"{file} cannot be written: {error.strerror}", remedy="Permit this account to write in its folder"
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
            remedy="Work as the account that runs the server; if it is missing, `dynammo-server start` makes another",
        ) from error
    if mode & 0o077:
        raise ConfigError(
            f"other accounts may read or write the operator's token {file} (mode {mode:04o})",
            accepted="mode 0600",
            remedy=f"Delete it, since it may be known, and start the server again, which makes {file.name} anew",
        )
    if len(token) < TOKEN_BYTES:
        raise ConfigError(
            f"{file} holds no token: {len(token)} characters",
            accepted=f"{TOKEN_BYTES} or more",
            remedy="Delete it and start the server again, which makes another",
        )
    return token


def shows_token(headers: Iterable[tuple[bytes, bytes]], token: str) -> bool:
    """Return whether an HTTP request carries the token, compared in a time that does not depend on what was sent."""
    shown = [value for name, value in headers if name.lower() == HEADER.encode()]
    return len(shown) == 1 and hmac.compare_digest(shown[0], token.encode())
