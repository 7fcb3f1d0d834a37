"""The operator's token: made once, for one account."""

from __future__ import annotations

from pathlib import Path

import pytest

from dynammo_core.support.errors import ConfigError
from server.consortium.control import Control
from server.consortium.settings import ServerSettings
from server.consortium.superlink import become_superlink
from server.gate.operator_token import HEADER, make_token, read_token, shows_token


def test_it_is_secret_and_stays_the_same(tmp_path: Path) -> None:
    file, other = tmp_path / "operator.token", tmp_path / "other.token"
    make_token(file)
    make_token(other)
    token = read_token(file)
    assert file.stat().st_mode & 0o777 == 0o600
    assert len(token) == 43
    assert token != read_token(other)
    make_token(file)
    assert read_token(file) == token


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o644])
def test_a_token_that_others_may_read_is_none(no_superlink: ServerSettings, mode: int) -> None:
    no_superlink.operator_token.chmod(mode)
    for act in (lambda: become_superlink(no_superlink), Control(no_superlink).runs):
        with pytest.raises(ConfigError, match=r"other accounts may read or write.*operator.token.*Delete it"):
            act()


@pytest.mark.parametrize("content", [None, "", "short", "\u00e9" * 43])
def test_a_file_without_a_token(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "operator.token"
    if content is not None:
        file.touch(mode=0o600)
        file.write_text(content)
    with pytest.raises(ConfigError, match=r"operator\.token"):
        read_token(file)


def test_a_header_is_compared_whole() -> None:
    token, name = "a" * 43, HEADER.encode()
    assert shows_token([(name.title(), token.encode())], token)
    for wrong in (b"", b"a" * 42, b"a" * 44, b"\xff" * 43):
        assert not shows_token([(name, wrong)], token)
    assert not shows_token([(name, token.encode())] * 2, token)
    assert not shows_token([], token)
