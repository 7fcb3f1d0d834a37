from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import resource
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from dynammo_core.data.samples import Samples
from dynammo_core.memory.private_files import locked_folder
from dynammo_core.memory.sealed_file import seal
from dynammo_core.memory.store import MemoryStore, ReplayMemory, Taken
from dynammo_core.support.errors import DynammoError, MemoryStoreError

KEY = bytes(range(32))
OWNER = {"run": "run-7", "site": "north"}
both = pytest.mark.parametrize("key", [None, KEY], ids=["plain", "encrypted"])


def store(folder: Path, *, run: str = "run-7", site: str = "north", key: bytes | None = None) -> MemoryStore:
    return MemoryStore(folder, run=run, site=site, key=key)


def memory(task: int = 0, count: int = 5, channels: int = 3) -> ReplayMemory:
    images = torch.randint(0, 256, (count, channels, 8, 8), generator=torch.Generator().manual_seed(task)).byte()
    records = tuple(f"patient \N{GREEK SMALL LETTER BETA}/{task}/{i}" for i in range(count))
    taken = tuple(Taken(i % (task + 1), date(2026, 2, 1 + i % 28)) for i in range(count))
    names = ("\N{GREEK SMALL LETTER BETA}", "b")
    return ReplayMemory(task, Samples(images, torch.arange(count), records), taken, names)


def same(a: ReplayMemory, b: ReplayMemory) -> bool:
    tensors = torch.equal(a.samples.images, b.samples.images) and torch.equal(a.samples.labels, b.samples.labels)
    return tensors and all(
        getattr(a, name) == getattr(b, name) for name in ("record_ids", "task", "taken", "class_names")
    )


@both
@pytest.mark.parametrize("kept", [memory(), memory(4, 1, channels=1), ReplayMemory(2, Samples.empty())])
def test_round_trip(tmp_path: Path, kept: ReplayMemory, key: bytes | None) -> None:
    held = store(tmp_path / "new" / "site", key=key)
    written = held.save(kept)
    loaded = store(tmp_path / "new" / "site", key=key).load()
    assert same(loaded, kept)
    assert (loaded.samples.images.dtype, loaded.samples.labels.dtype) == (torch.uint8, torch.int64)
    assert written == held.path.stat().st_size >= kept.samples.images.numel()


def test_every_exemplar_has_the_time_it_was_taken_in() -> None:
    with pytest.raises(ValueError, match="5 exemplars were taken in at 4 times"):
        replace(memory(), taken=memory().taken[:4])


def test_a_part_of_a_memory_keeps_all_that_belongs_to_its_exemplars() -> None:
    whole = memory(1)
    part = whole.subset([3, 0])
    assert part.record_ids == (whole.record_ids[3], whole.record_ids[0])
    assert torch.equal(part.samples.images, whole.samples.images[[3, 0]])
    assert part.taken == (Taken(1, date(2026, 2, 4)), Taken(0, date(2026, 2, 1)))
    assert (part.task, part.class_names) == (1, whole.class_names)


def test_equal_memories_make_equal_plain_files(tmp_path: Path) -> None:
    """Or a simulation would not repeat bit for bit."""
    for name in ("one", "two"):
        store(tmp_path / name).save(memory(3))
    assert store(tmp_path / "one").path.read_bytes() == store(tmp_path / "two").path.read_bytes()


def test_an_encrypted_file_holds_no_pixel_and_no_record_and_no_two_are_alike(tmp_path: Path) -> None:
    kept, held, plain = memory(), store(tmp_path / "closed", key=KEY), store(tmp_path / "open")
    pixels = [image.numpy().tobytes()[:16] for image in kept.samples.images]
    plain.save(kept)
    assert all(secret in plain.path.read_bytes() for secret in (*pixels, b"patient"))  # the search finds such things
    contents = []
    for _ in range(2):
        held.save(kept)
        contents.append(held.path.read_bytes())
        assert not any(secret in contents[-1] for secret in (*pixels, b"patient", b"labels", KEY))
    assert contents[0] != contents[1]


def test_images_that_share_memory_are_stored_as_they_are(tmp_path: Path) -> None:
    grey = memory(channels=1).samples
    samples = Samples(grey.images.expand(-1, 3, -1, -1), grey.labels, grey.record_ids)
    coloured = replace(memory(), samples=samples)
    store(tmp_path).save(coloured)
    assert same(store(tmp_path).load(), coloured)


def test_before_the_first_task_the_memory_is_empty_and_nothing_is_written(tmp_path: Path) -> None:
    loaded = store(tmp_path / "site").load()
    assert loaded.task == -1
    assert not len(loaded.samples)
    assert not (tmp_path / "site").exists()


@both
def test_only_the_owner_can_read_it_or_enter_its_folder(tmp_path: Path, key: bytes | None) -> None:
    (tmp_path / "was open").mkdir(mode=0o755)
    for folder in (tmp_path / "was open", tmp_path / "new" / "site"):
        for task in range(2):  # a replaced file too
            held = store(folder, key=key)
            held.save(memory(task))
            assert held.path.stat().st_mode & 0o777 == 0o600
            assert folder.stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(MemoryStoreError, match=r"cannot be made private: .*memory\.folder"):
        store(tmp_path / "file" / "site").save(memory())


@both
def test_who_holds_the_lock_changes_the_memory_alone(tmp_path: Path, key: bytes | None) -> None:
    """Two threads take away one exemplar each, twenty times over: none of the forty changes is lost."""
    store(tmp_path, key=key).save(memory(count=41))

    def shorten() -> None:
        for _ in range(20):
            held = store(tmp_path, key=key)
            with held.locked():
                kept = held.load()
                held.save(kept.subset(range(len(kept.samples) - 1)))

    threads = [threading.Thread(target=shorten) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store(tmp_path, key=key).load().record_ids == memory(count=41).record_ids[:1]


def test_a_file_system_that_cannot_lock_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with pytest.raises(MemoryStoreError, match=r"cannot be locked: .*local disk"), locked_folder(tmp_path):
        pass


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


# --- files that are not this site's, or not whole


@both
@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"run": "run-8"}, "'run': 'run-7'.*not to .*'run': 'run-8'"),
        ({"site": "south"}, "'site': 'north'.*'site': 'so"),
    ],
)
def test_a_foreign_memory_is_refused(tmp_path: Path, key: bytes | None, other: dict[str, str], words: str) -> None:
    store(tmp_path, key=key).save(memory())
    with pytest.raises(MemoryStoreError, match=f"belongs to .*{words}.*a memory folder of its own"):
        store(tmp_path, **other, key=key).load()  # type: ignore[arg-type]


@both
def test_a_foreign_memory_whose_first_line_was_rewritten_is_refused(tmp_path: Path, key: bytes | None) -> None:
    held = store(tmp_path, key=key)
    held.save(memory())
    held.path.write_bytes(held.path.read_bytes().replace(b"run-7", b"run-8"))
    with pytest.raises(MemoryStoreError, match=r"cannot be read .*damaged"):
        store(tmp_path, run="run-8", key=key).load()


@pytest.mark.parametrize(
    ("made", "asked", "words"),
    [
        (KEY, None, "is encrypted, and this site names no key. Set memory.key .* fingerprint is [0-9a-f]{8}"),
        (None, KEY, "is not encrypted, and this site has a key"),
        (KEY, KEY[::-1], "is encrypted with another key than the one with fingerprint [0-9a-f]{8}"),
    ],
)
def test_a_memory_of_another_key_is_refused_and_stays(
    tmp_path: Path, made: bytes | None, asked: bytes | None, words: str
) -> None:
    store(tmp_path, key=made).save(memory())
    with pytest.raises(MemoryStoreError, match=words) as caught:
        store(tmp_path, key=asked).load()
    assert not any(secret.hex() in str(caught.value) for secret in (KEY, KEY[::-1]))
    assert same(store(tmp_path, key=made).load(), memory())


@both
def test_every_flipped_byte_is_found(tmp_path: Path, key: bytes | None) -> None:
    """Each byte of the file in turn, so that none is beyond the tag."""
    held, kept = store(tmp_path, key=key), memory(count=1, channels=1)
    held.save(kept)
    content = held.path.read_bytes()
    for position in range(len(content)):
        flipped = bytearray(content)
        flipped[position] ^= 1 << position % 8
        held.path.write_bytes(flipped)
        with pytest.raises(MemoryStoreError) as caught:
            held.load()
        assert "patient" not in str(caught.value)
    held.path.write_bytes(content)
    assert same(held.load(), kept)


@both
@given(st.data())
def test_any_flip_or_cut_is_found(
    tmp_path_factory: pytest.TempPathFactory, key: bytes | None, data: st.DataObject
) -> None:
    held = store(tmp_path_factory.mktemp("memory"), key=key)
    held.save(memory())
    content = bytearray(held.path.read_bytes())
    if data.draw(st.booleans()):
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    else:
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    held.path.write_bytes(content)
    with pytest.raises(MemoryStoreError, match=r"Restore it from a backup|memory\.key|memory folder of its own"):
        held.load()


@both
@pytest.mark.parametrize("more", [b"\0", b"\n", bytes(64)])
def test_bytes_after_the_end_are_found(tmp_path: Path, key: bytes | None, more: bytes) -> None:
    held = store(tmp_path, key=key)
    held.save(memory())
    held.path.write_bytes(held.path.read_bytes() + more)
    with pytest.raises(MemoryStoreError, match="cannot be read"):
        held.load()


@both
def test_a_file_that_ends_within_its_tag_is_cut_off(tmp_path: Path, key: bytes | None) -> None:
    held = store(tmp_path, key=key)
    held.save(memory())
    content = held.path.read_bytes()
    held.path.write_bytes(content[: content.index(b"\n") + 1 + 12 + 15])
    with pytest.raises(MemoryStoreError, match="it is cut off"):
        held.load()


@pytest.mark.parametrize(
    ("there", "instead"),
    [
        ('"dynammo-sealed-1"', '"dynammo-sealed-2"'),
        ('"none"', '"rot13"'),
        ("null", "5"),
        ('"none", "key": null', '"aes-256-gcm", "key": 5'),
        (": ", ":"),
    ],
)
def test_a_first_line_of_another_kind_is_refused_though_the_checksum_fits(
    tmp_path: Path, there: str, instead: str
) -> None:
    line, _, rest = seal(written(TENSORS, NOTES), OWNER, None).partition(b"\n")
    assert there.encode() in line
    line, content = line.replace(there.encode(), instead.encode()) + b"\n", rest[:-32]
    store(tmp_path).path.write_bytes(line + content + hashlib.sha256(line + content).digest())
    for key in (None, KEY):
        with pytest.raises(MemoryStoreError, match="it does not begin as a sealed file does"):
            store(tmp_path, key=key).load()


@pytest.mark.parametrize("line", [b"[" * 4095 + b"\n", b"[" * 10**5, b"\xff\n", b"null\n", b'{"owner": 1}\n'])
def test_a_file_that_begins_otherwise_is_refused(tmp_path: Path, line: bytes) -> None:
    store(tmp_path).path.write_bytes(line + bytes(100))
    with pytest.raises(MemoryStoreError, match="it does not begin as a sealed file does"):
        store(tmp_path).load()


def test_a_folder_in_its_place_is_refused(tmp_path: Path) -> None:
    store(tmp_path).path.mkdir()
    with pytest.raises(MemoryStoreError, match=r"memory\.safetensors cannot be read .*Restore it from a backup"):
        store(tmp_path).load()


NOTES = {"task": 1, "record_ids": ["a"], "taken": [[0, "2026-01-01"]], "class_names": [], "arrived": [[0, 0]]}
TENSORS = {"images": torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "labels": torch.zeros(1, dtype=torch.int64)}


def written(tensors: dict[str, torch.Tensor], notes: object) -> bytes:
    return bytes(save(tensors, metadata={"notes": json.dumps(notes)}))


@both
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"seven b",
        bytes(8),
        (10**18).to_bytes(8, "little") + b"{}",
        (2**16).to_bytes(8, "little") + b"[" * 2**16,
        written(TENSORS, []),
        written(TENSORS, NOTES | {"task": None}),
        written(TENSORS, NOTES | {"record_ids": []}),
        written(TENSORS, NOTES | {"taken": []}),
        written(TENSORS, NOTES | {"taken": [[0, "someday"]]}),
        written(TENSORS, NOTES | {"taken": [0]}),
        written({"images": TENSORS["images"]}, NOTES),
        written(TENSORS | {"images": torch.zeros(1, 64, dtype=torch.uint8)}, NOTES),
        written(TENSORS | {"images": torch.zeros(1, 3, 8, 8)}, NOTES),
        written(TENSORS | {"labels": torch.tensor([-1])}, NOTES),
        written(TENSORS, NOTES).replace(b"[1,3,8,8]", b"[1,3,8,9]"),
        written(TENSORS, NOTES).replace(b"[1,3,8,8]", b"[1,3,8,7]"),
        written(TENSORS, NOTES).replace(b"[1,3,8,8]", b"[1,8,8] "),
        written(TENSORS, NOTES).replace(b'"U8"', b'"I8"'),
        written(TENSORS, NOTES).replace(b"[1]", b'"1"'),
        written(TENSORS, NOTES)[:-1],
        bytes(save(TENSORS)),
    ],
)
def test_a_whole_file_that_holds_no_memory_is_refused(tmp_path: Path, key: bytes | None, content: bytes) -> None:
    """The tag fits, so somebody sealed this: it is refused all the same."""
    assert written(TENSORS, NOTES) != content
    store(tmp_path).path.write_bytes(seal(content, OWNER, key))
    with pytest.raises(MemoryStoreError, match=r"cannot be read .*what it holds is not a valid memory.*Restore"):
        store(tmp_path, key=key).load()


@both
def test_the_whole_file_of_the_tests_above_would_be_a_memory(tmp_path: Path, key: bytes | None) -> None:
    store(tmp_path).path.write_bytes(seal(written(TENSORS, NOTES), OWNER, key))
    assert store(tmp_path, key=key).load().record_ids == ("a",)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def patched(fields: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Mappings in which any of the fields is something else."""
    return st.fixed_dictionaries({name: st.just(value) | JSON for name, value in fields.items()})


@given(
    st.one_of(
        st.binary(max_size=300),
        st.builds(lambda line, rest: json.dumps(line).encode() + b"\n" + rest, JSON, st.binary(max_size=60)),
        patched({"format": "dynammo-sealed-1", "cipher": "none", "key": None, "owner": OWNER}).map(
            lambda line: json.dumps(line).encode() + b"\n" + bytes(40)
        ),
        st.binary(max_size=100).map(lambda content: seal(content, OWNER, None)),
        patched(NOTES).map(lambda notes: seal(written(TENSORS, notes), OWNER, None)),
        patched({"dtype": "U8", "shape": [1, 3, 8, 8], "data_offsets": [8, 200]}).map(
            lambda entry: seal(with_entry(entry), OWNER, None)
        ),
    )
)
def test_malformed_files_are_memories_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    for key in (None, KEY):
        held = store(tmp_path_factory.mktemp("memory"), key=key)
        held.path.write_bytes(content)
        try:
            loaded = held.load()
        except MemoryStoreError:
            continue
        assert key is None
        assert len(loaded.samples) == len(loaded.taken)


def with_entry(entry: dict[str, Any]) -> bytes:
    """A memory whose images are described by `entry`."""
    labels = {"dtype": "I64", "shape": [1], "data_offsets": [0, 8]}
    head = json.dumps({"__metadata__": {"notes": json.dumps(NOTES)}, "labels": labels, "images": entry}).encode()
    return len(head).to_bytes(8, "little") + head + bytes(200)


@both
def test_exemplars_keep_their_patients(tmp_path: Path, key: bytes | None) -> None:
    plain, held = memory(), store(tmp_path, key=key)
    kept = replace(
        plain, samples=replace(plain.samples, patients=("ann", "bob", "ann", "\N{GREEK SMALL LETTER BETA}", ""))
    )
    held.save(kept)
    assert same(held.load(), kept)
    assert held.load().patient_ids == kept.samples.patients
    assert held.load().subset([2, 1]).patient_ids == ("ann", "bob")


def test_a_memory_that_names_no_patients_is_written_and_read_as_ever(tmp_path: Path) -> None:
    held = store(tmp_path)
    held.save(memory())
    assert b"patients" not in held.path.read_bytes()
    assert held.load().samples.patients == ()
    assert held.load().patient_ids == memory().record_ids
