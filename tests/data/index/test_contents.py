from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path

import pytest

from dynammo_core.data.index.contents import HashCache, file_contents, hashes_kept_in
from dynammo_core.support.errors import DataError


@pytest.fixture
def cache(tmp_path: Path) -> HashCache:
    return HashCache(tmp_path / "cache")


def write(folder: Path, contents: list[bytes], *, hours_old: float = 1.0) -> list[Path]:
    """Files that have not changed for hours."""
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{i}.png" for i in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
        changed = time.time() - 3600 * hours_old
        os.utime(path, (changed, changed))
    return paths


def hashed(paths: list[Path], cache: HashCache) -> tuple[str, ...]:
    with hashes_kept_in(cache):
        return tuple(content.sha256 for content in file_contents(paths, [""] * len(paths), "here"))


def test_contents_are_the_sha256_of_the_bytes_in_the_order_of_the_files(tmp_path: Path, cache: HashCache) -> None:
    contents = [b"aa", b"bb", b"aa", b"longer"]
    expected = tuple(hashlib.sha256(content).hexdigest() for content in contents)
    assert hashed(write(tmp_path / "data", contents), cache) == expected


def test_a_file_that_did_not_change_is_not_read_again(tmp_path: Path, cache: HashCache) -> None:
    paths = write(tmp_path / "data", [b"one", b"two"])
    before = hashed(paths, cache)
    stat = paths[0].stat()
    paths[0].write_bytes(b"ONE")  # as many bytes, and the time is set back: the cache cannot know
    os.utime(paths[0], ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert hashed(paths, cache) == before


@pytest.mark.parametrize("change", ["time", "size"])
def test_a_file_that_changed_is_read_again(tmp_path: Path, cache: HashCache, change: str) -> None:
    paths = write(tmp_path / "data", [b"one", b"two"])
    before = hashed(paths, cache)
    stat = paths[0].stat()
    paths[0].write_bytes(b"ONE" if change == "time" else b"one more")
    if change == "size":
        os.utime(paths[0], ns=(stat.st_atime_ns, stat.st_mtime_ns))
    after = hashed(paths, cache)
    assert after[0] == hashlib.sha256(paths[0].read_bytes()).hexdigest() != before[0]
    assert after[1] == before[1]


def test_a_file_that_has_just_changed_is_not_kept(tmp_path: Path, cache: HashCache) -> None:
    hashed(write(tmp_path / "data", [b"one"], hours_old=0), cache)
    assert not cache.folder.exists()


def test_a_cache_of_another_version_is_replaced(
    tmp_path: Path, cache: HashCache, caplog: pytest.LogCaptureFixture
) -> None:
    paths = write(tmp_path / "data", [b"one"])
    expected = hashed(paths, cache)
    cache.file("here").write(json.dumps({str(paths[0]): [3, 0, "ff"]}).encode())
    assert hashed(paths, cache) == expected
    assert "another version" in caplog.text


def test_the_cache_is_sealed_private_and_can_be_lost(tmp_path: Path) -> None:
    cache = HashCache(tmp_path / "cache", key=bytes(range(32)))
    paths = write(tmp_path / "data", [b"one"])
    expected = hashed(paths, cache)
    (file,) = cache.folder.iterdir()
    assert file.stat().st_mode & 0o077 == 0
    assert b"0.png" not in file.read_bytes()
    assert hashed(paths, cache) == expected
    file.write_bytes(file.read_bytes()[:-1])
    assert hashed(paths, cache) == expected
    assert hashed(paths, HashCache(cache.folder, key=bytes(32))) == expected
    cache.discard()
    assert not [*cache.folder.iterdir()]


def test_by_default_it_is_this_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DYNAMMO_CACHE", str(tmp_path / "mine"))
    file_contents(write(tmp_path / "data", [b"one"]), [""], "here")
    assert len([*(tmp_path / "mine" / "index").iterdir()]) == 1


def test_a_cache_that_cannot_be_written_costs_time_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    assert len(hashed(write(tmp_path / "data", [b"one"]), HashCache(tmp_path / "file" / "cache"))) == 1


def test_a_missing_file_is_named_with_its_row(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.png \(row 3\) cannot be opened: No such file"):
        file_contents([tmp_path / "gone.png"], ["row 3"], "here")


def test_empty_files_are_counted_and_the_first_is_named(tmp_path: Path, cache: HashCache) -> None:
    paths = write(tmp_path / "data", [b"one", b"", b""])
    with pytest.raises(DataError, match=r"2 image files are empty.*the first is .*1\.png"):
        hashed(paths, cache)
