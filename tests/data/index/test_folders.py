from __future__ import annotations

from pathlib import Path

import pytest

from dynammo_core.configuration.settings import DataSettings
from dynammo_core.data.index.folders import data_root, require_folder
from dynammo_core.support.errors import DataError


def test_the_configured_root_comes_first_then_the_variable_then_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DYNAMMO_DATA", str(tmp_path / "shared"))
    assert data_root(DataSettings(dataset="path16", root="~/mine")) == tmp_path / "mine"
    assert data_root(DataSettings(dataset="path16")) == tmp_path / "shared" / "path16"
    monkeypatch.delenv("DYNAMMO_DATA")
    assert data_root(DataSettings(dataset="path16")) == tmp_path / ".cache" / "dynammo" / "path16"


def test_a_missing_folder_says_what_should_lie_there(tmp_path: Path) -> None:
    settings = DataSettings(dataset="path16", root=str(tmp_path / "gone"))
    with pytest.raises(DataError, match=r"gone is not there.*data\.root is '.*Accepted: one folder a class"):
        require_folder(settings, "one folder a class")


def test_an_unset_root_is_said_to_be_unset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("DYNAMMO_DATA", raising=False)
    with pytest.raises(DataError, match=r"data\.root is not set, and \$DYNAMMO_DATA is not set either"):
        require_folder(DataSettings(dataset="path16"), "")
    monkeypatch.setenv("DYNAMMO_DATA", "/no/such")
    with pytest.raises(DataError, match=r"/no/such/path16 is not there.*\$DYNAMMO_DATA is '/no/such'"):
        require_folder(DataSettings(dataset="path16"), "")


def test_an_archive_is_to_be_unpacked(tmp_path: Path) -> None:
    archive = tmp_path / "data.zip"
    archive.write_bytes(b"PK")
    with pytest.raises(DataError, match=r"data\.zip is an archive.*Unpack it"):
        require_folder(DataSettings(dataset="path16", root=str(archive)), "")


def test_the_home_of_nobody_is_refused() -> None:
    with pytest.raises(DataError, match=r"~no-such-user.*Write the whole path out"):
        data_root(DataSettings(dataset="path16", root="~no-such-user/images"))
