"""Atomic writing: the old file or the new one, whole, whatever fails; and nothing else beside it."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from pathlib import Path
from typing import Any, NoReturn

import pytest

from dynammo_core.support.errors import CheckpointError
from dynammo_core.support.files import write_atomically


def no_space(*_: Any, **__: Any) -> NoReturn:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_it_writes_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file"
    write_atomically(path, b"old and longer")
    assert path.read_bytes() == b"old and longer"
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    write_atomically(path, b"")
    assert path.read_bytes() == b""
    assert names(path.parent) == ["file"]


@pytest.mark.parametrize("mode", [0o644, 0o600])
def test_only_those_may_read_it_who_are_meant_to(tmp_path: Path, mode: int) -> None:
    write_atomically(tmp_path / "file", b"x", mode=mode)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode


def test_content_is_on_the_disk_before_the_name_and_the_name_before_it_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a power cut after the rename can leave the name with nothing behind it."""
    order: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def recorded_fsync(descriptor: int) -> None:
        order.append("sync folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "sync file")
        fsync(descriptor)

    def recorded_replace(self: Path, target: Path) -> Path:
        order.append("rename")
        assert self.parent == target.parent  # a rename is atomic within one file system only
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(Path, "replace", recorded_replace)
    write_atomically(tmp_path / "file", b"x")
    assert order == ["sync file", "rename", "sync folder"]


@pytest.mark.parametrize(
    ("place", "name"), [(tempfile, "mkstemp"), (os, "fdopen"), (os, "fsync"), (Path, "chmod"), (Path, "replace")]
)
def test_a_full_disk_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: Any, name: str
) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")
    with monkeypatch.context() as patch:
        patch.setattr(place, name, no_space)
        with pytest.raises(CheckpointError) as caught:
            write_atomically(path, b"new")
    assert f"cannot write {path}: No space left on device" in str(caught.value)
    assert "Free disk space" in str(caught.value)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_an_interrupt_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: int) -> NoReturn:
        raise KeyboardInterrupt

    path = tmp_path / "file"
    write_atomically(path, b"old")
    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_a_real_full_disk(small_disk: Path) -> None:
    path = small_disk / "file"
    write_atomically(path, b"old" * 200_000)
    with pytest.raises(CheckpointError, match="No space left on device"):
        write_atomically(path, b"new" * 600_000)  # 1.8 MB beside the old 0.6 MB: more than the 2 MB there are
    assert path.read_bytes() == b"old" * 200_000
    assert names(small_disk) == ["file"]
    write_atomically(path, b"new" * 300_000)  # 0.9 MB fit beside it
    assert path.read_bytes() == b"new" * 300_000


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(CheckpointError, match="cannot write"):
        write_atomically(tmp_path / "file" / "below", b"new")
    (tmp_path / "taken").mkdir()
    with pytest.raises(CheckpointError, match="cannot write"):
        write_atomically(tmp_path / "taken", b"new")
    assert names(tmp_path) == ["file", "taken"]
