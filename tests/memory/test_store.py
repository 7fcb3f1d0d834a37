from __future__ import annotations

import errno
import json
import os
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from dynammo_core.data.samples import Samples
from dynammo_core.errors import DynammoError, MemoryStoreError
from dynammo_core.memory.store import MemoryStore, ReplayMemory


def store(folder: Path, experiment: str = "abc", site: int = 3) -> MemoryStore:
    return MemoryStore(folder, experiment=experiment, site=site)


def memory(task: int = 0, count: int = 5, channels: int = 3) -> ReplayMemory:
    images = torch.randint(0, 256, (count, channels, 8, 8), generator=torch.Generator().manual_seed(task)).byte()
    records = tuple(f"patient \N{GREEK SMALL LETTER BETA}/{task}/{i}" for i in range(count))
    return ReplayMemory(task, Samples(images, torch.arange(count), records))


def same(a: ReplayMemory, b: ReplayMemory) -> bool:
    tensors = torch.equal(a.samples.images, b.samples.images) and torch.equal(a.samples.labels, b.samples.labels)
    return tensors and a.samples.record_ids == b.samples.record_ids and a.task == b.task


@pytest.mark.parametrize("kept", [memory(), memory(4, 1, channels=1), ReplayMemory(2, Samples.empty())])
def test_round_trip(tmp_path: Path, kept: ReplayMemory) -> None:
    written = store(tmp_path / "new" / "site").save(kept)
    loaded = store(tmp_path / "new" / "site").load()
    assert same(loaded, kept)
    assert loaded.samples.images.dtype == torch.uint8
    assert written == store(tmp_path / "new" / "site").path.stat().st_size >= kept.samples.images.numel()


def test_images_that_share_memory_are_stored_as_they_are(tmp_path: Path) -> None:
    grey = memory(channels=1).samples
    coloured = ReplayMemory(0, Samples(grey.images.expand(-1, 3, -1, -1), grey.labels, grey.record_ids))
    store(tmp_path).save(coloured)
    assert same(store(tmp_path).load(), coloured)


def test_before_the_first_task_the_memory_is_empty_and_nothing_is_written(tmp_path: Path) -> None:
    loaded = store(tmp_path / "site").load()
    assert loaded.task == -1
    assert not len(loaded.samples)
    assert not (tmp_path / "site").exists()


def test_only_the_owner_can_read_it(tmp_path: Path) -> None:
    for task in range(2):  # a replaced file too
        store(tmp_path).save(memory(task))
        assert store(tmp_path).path.stat().st_mode & 0o777 == 0o600


def test_the_newest_memory_alone_is_kept(tmp_path: Path) -> None:
    for task in range(3):
        store(tmp_path).save(memory(task))
    assert same(store(tmp_path).load(), memory(2))
    assert list(tmp_path.iterdir()) == [store(tmp_path).path]


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """The kernel cuts every write of this process off there, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_write_that_stops_half_way_leaves_the_old_memory(tmp_path: Path) -> None:
    store(tmp_path).save(memory(0))
    with files_of_at_most(1000), pytest.raises(DynammoError, match=r"cannot write .*safetensors: File too large"):
        store(tmp_path).save(memory(1, count=50))
    assert same(store(tmp_path).load(), memory(0))
    assert list(tmp_path.iterdir()) == [store(tmp_path).path]


def test_a_full_disk_leaves_the_old_memory(small_disk: Path) -> None:
    store(small_disk).save(memory(0))
    with pytest.raises(DynammoError, match=r"No space left on device.*Free disk space"):
        store(small_disk).save(memory(1, count=1 + shutil.disk_usage(small_disk).total // 192))  # 192 bytes each
    assert same(store(small_disk).load(), memory(0))
    assert list(small_disk.iterdir()) == [store(small_disk).path]


@pytest.mark.parametrize("fails", ["fsync", "replace"])
def test_a_full_disk_at_the_last_moment_leaves_the_old_memory(
    tmp_path: Path, fails: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    store(tmp_path).save(memory(0))
    with monkeypatch.context() as patch:
        patch.setattr(os, fails, full)
        with pytest.raises(DynammoError, match=r"No space left on device.*Free disk space"):
            store(tmp_path).save(memory(1))
    assert same(store(tmp_path).load(), memory(0))
    assert list(tmp_path.iterdir()) == [store(tmp_path).path]


@pytest.mark.parametrize(
    ("owner", "words"),
    [(("abd", 3), "'experiment': 'abc'.*not to .*'abd'"), (("abc", 4), "'site': '3'.*not to .*'site': '4'")],
)
def test_a_foreign_memory_is_refused(tmp_path: Path, owner: tuple[str, int], words: str) -> None:
    store(tmp_path).save(memory())
    with pytest.raises(MemoryStoreError, match=f"belongs to .*{words}.*a memory folder of its own"):
        store(tmp_path, *owner).load()


def corrupt(path: Path, kind: str) -> None:
    content = path.read_bytes()
    with safe_open(path, "pt") as file:
        notes, tensors = file.metadata(), {name: file.get_tensor(name) for name in ("images", "labels")}
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "cut off":
        path.write_bytes(content[:-1])
    elif kind == "cut off in the header":
        path.write_bytes(content[:40])
    elif kind == "other bytes":
        path.write_bytes(content[::-1])
    elif kind == "no notes":
        save_file(tensors, path)
    elif kind == "no owner":
        save_file(tensors, path, {"task": notes["task"], "record_ids": notes["record_ids"]})
    elif kind == "no labels":
        save_file({"images": tensors["images"]}, path, notes)
    elif kind == "records missing":
        save_file(tensors, path, notes | {"record_ids": json.dumps(["one"])})
    elif kind == "a folder":
        path.unlink()
        path.mkdir()


@pytest.mark.parametrize(
    "kind",
    [
        "empty",
        "cut off",
        "cut off in the header",
        "other bytes",
        "no notes",
        "no owner",
        "no labels",
        "records missing",
        "a folder",
    ],
)
def test_a_corrupt_memory_is_named_with_the_remedy(tmp_path: Path, kind: str) -> None:
    store(tmp_path).save(memory())
    corrupt(store(tmp_path).path, kind)
    with pytest.raises(MemoryStoreError, match=r"memory\.safetensors cannot be read .*Restore it from a backup"):
        store(tmp_path).load()
