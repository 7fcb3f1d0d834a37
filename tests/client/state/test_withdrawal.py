"""A withdrawn record is never chosen again, the ledger names nobody, and nothing that happens to it goes unnoticed."""

from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from client.state.withdrawal import WithdrawalLedger
from dynammo_core.data.samples import Samples, Split
from dynammo_core.data.sources import ArraySource
from dynammo_core.memory.store import MemoryStore, ReplayMemory, Taken
from dynammo_core.support.errors import CheckpointError, MemoryStoreError
from dynammo_core.support.files import write_atomically

DAY = date(2026, 5, 4)


def samples(*records: str) -> Samples:
    images = torch.arange(len(records), dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 8, 8).clone()
    return Samples(images, torch.arange(len(records)), records)


def memory(*records: str) -> ReplayMemory:
    return ReplayMemory(0, samples(*records), tuple(Taken(0, DAY) for _ in records))


def ledger(folder: Path, *withdrawn: str) -> WithdrawalLedger:
    made = WithdrawalLedger(folder)
    if withdrawn:
        made.withdraw(withdrawn, "consent", DAY)
    return made


def test_before_the_first_withdrawal_everything_is_allowed_and_nothing_is_written(tmp_path: Path) -> None:
    empty, held = ledger(tmp_path / "memory"), samples("a", "b")
    assert empty.is_withdrawn(["a", "b"]).tolist() == [False, False]
    assert empty.is_withdrawn([]).tolist() == []
    assert empty.allowed(held) is held
    assert empty.withdraw([], "nobody", DAY) == 0
    assert (empty.count(), empty.path.exists()) == ((0, 0), False)


def test_withdrawn_records_leave_samples_memories_and_splits(tmp_path: Path) -> None:
    held = ledger(tmp_path, "b", "d")
    assert held.is_withdrawn(["a", "b", "c", "d"]).tolist() == [False, True, False, True]
    kept = held.allowed(samples("a", "b", "c", "d"))
    assert kept.record_ids == ("a", "c")
    assert kept.labels.tolist() == kept.images[:, 0, 0, 0].tolist() == [0, 2]
    assert held.allowed(memory("d", "a")).record_ids == ("a",)
    assert len(held.allowed(samples("b"))) == 0
    images = np.arange(4, dtype=np.uint8)[:, None, None].repeat(8, 1).repeat(8, 2)
    split = held.allowed_split(Split(ArraySource(images), np.arange(4), ("a", "b", "c", "d"), ("x", "y", "x", "y")))
    assert (split.record_ids, split.sites, split.labels.tolist()) == (("a", "c"), ("x", "x"), [0, 2])
    assert split.source.read(1)[0, 0] == 2


def test_the_ledger_only_grows_and_names_nobody(tmp_path: Path) -> None:
    held = ledger(tmp_path / "memory", "patient-1", "patient-2", "patient-1")
    before = held.path.read_bytes()
    assert held.withdraw(["patient-2", "patient-3"], "by letter", date(2026, 6, 1)) == 1
    after = held.path.read_bytes()
    assert after.startswith(before)
    assert (held.count(), after.count(b"\n")) == ((3, 0), 4)
    assert b"patient" not in after
    last = json.loads(after.splitlines()[-1])
    assert (last["reason"], last["day"]) == ("by letter", "2026-06-01")
    assert last["record"] == held.hashes(["patient-3"])[0]
    assert held.withdraw(["patient-3"], "again", DAY) == 0
    assert held.path.read_bytes() == after
    assert held.path.stat().st_mode & 0o777 == 0o600
    assert held.path.parent.stat().st_mode & 0o777 == 0o700


def test_two_sites_ledgers_cannot_be_compared(tmp_path: Path) -> None:
    one, other = (ledger(tmp_path / site, "patient-1") for site in ("north", "south"))
    assert one.hashes(["patient-1"]) != other.hashes(["patient-1"])


def test_a_record_named_by_a_path_that_is_no_unicode(tmp_path: Path) -> None:
    held = ledger(tmp_path, "scan\udcff.png")
    assert held.is_withdrawn(["scan\udcff.png", "scan\udcfe.png"]).tolist() == [True, False]


@given(withdrawn=st.lists(st.text(max_size=4)), asked=st.lists(st.text(max_size=2)))
def test_exactly_the_withdrawn_are_withdrawn(
    tmp_path_factory: pytest.TempPathFactory, withdrawn: list[str], asked: list[str]
) -> None:
    held = ledger(tmp_path_factory.mktemp("memory"), *withdrawn)
    assert held.count() == (len(set(withdrawn)), 0)
    everybody = [*withdrawn, *asked]
    assert held.is_withdrawn(everybody).tolist() == [record in withdrawn for record in everybody]


@given(st.data())
def test_a_flip_or_a_lost_line_is_found(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """A record must not come back because a bit of its hash fell over."""
    held = ledger(tmp_path_factory.mktemp("memory"), "a", "b", "c")
    content = bytearray(held.path.read_bytes())
    if data.draw(st.booleans()):
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    else:
        lines = content.splitlines(keepends=True)
        del lines[data.draw(st.integers(0, 2))]
        content = bytearray(b"".join(lines))
    held.path.write_bytes(content)
    for use in (held.is_withdrawn, lambda ids: held.withdraw(ids, "", DAY), held.hashes):
        with pytest.raises(MemoryStoreError, match=r"withdrawn\.jsonl cannot be read .*Restore it from a backup"):
            use(["a"])
    assert held.path.read_bytes() == content


@pytest.mark.parametrize("content", [b"", b"\n", b"[]\n", b"{}\n", b"[" * 10**5, b'{"link": 1}\n', b"\xff\n"])
def test_what_is_no_ledger_is_refused(tmp_path: Path, content: bytes) -> None:
    held = ledger(tmp_path)
    held.path.write_bytes(content)
    with pytest.raises(MemoryStoreError, match=r"withdrawn\.jsonl cannot be read"):
        held.is_withdrawn(["a"])
    held.path.unlink()
    held.path.mkdir()
    with pytest.raises(MemoryStoreError, match="IsADirectoryError"):
        held.allowed(samples("a"))


def test_withdrawals_at_the_same_time_are_all_entered(tmp_path: Path) -> None:
    def withdraw(name: str) -> None:
        for i in range(20):
            ledger(tmp_path, f"{name}{i}")

    threads = [threading.Thread(target=withdraw, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ledger(tmp_path).count() == (40, 0)


def test_a_full_disk_leaves_the_old_ledger(small_disk: Path) -> None:
    held = ledger(small_disk, "a")
    write_atomically(small_disk / "filler", bytes(1_990_000))
    before = held.path.read_bytes()
    with pytest.raises(CheckpointError, match="No space left on device"):
        held.withdraw([str(i) for i in range(1000)], "many", DAY)  # 1000 lines of some 200 bytes
    assert held.path.read_bytes() == before
    assert held.is_withdrawn(["a", "1"]).tolist() == [True, False]


@pytest.mark.parametrize("key", [None, bytes(32)])
def test_a_purge_takes_withdrawn_records_out_of_a_memory(tmp_path: Path, key: bytes | None) -> None:
    store, held = MemoryStore(tmp_path / "run", run="run", site="north", key=key), ledger(tmp_path, "b", "x")
    store.save(memory("a", "b", "c"))
    assert held.purge(store) == 1
    assert store.load().record_ids == ("a", "c")
    kept = store.path.read_bytes()
    assert held.purge(store) == 0
    assert store.path.read_bytes() == kept  # not even written anew


def shown(patients: dict[str, str]) -> Samples:
    """One image per record, each of a patient."""
    return replace(samples(*patients), patients=tuple(patients.values()))


def test_a_patients_images_stay_out_whenever_they_arrive(tmp_path: Path) -> None:
    held = ledger(tmp_path)
    assert held.withdraw(["a"], "consent", DAY, patients=["ann"]) == 2
    assert held.withdraw(["a"], "again", DAY, patients=["ann"]) == 0
    assert held.count() == (1, 1)
    later = shown({"a": "ann", "b": "ann", "c": "bob"})
    assert held.allowed(later).record_ids == ("c",)
    assert held.allowed(ReplayMemory(0, later, (Taken(0, DAY),) * 3)).record_ids == ("c",)
    images = np.zeros((3, 8, 8), dtype=np.uint8)
    split = Split(ArraySource(images), np.arange(3), later.record_ids, patients=later.patients)
    assert held.allowed_split(split).patients == ("bob",)
    assert b"ann" not in held.path.read_bytes()


def test_an_id_that_names_a_record_here_and_a_patient_there_is_not_mixed_up(tmp_path: Path) -> None:
    by_record, by_patient = ledger(tmp_path / "one", "7"), ledger(tmp_path / "other")
    by_patient.withdraw([], "consent", DAY, patients=["7"])
    both = shown({"7": "8", "9": "7"})
    assert by_record.allowed(both).record_ids == ("9",)
    assert by_patient.allowed(both).record_ids == ("7",)
    assert by_record.hashes(["7"]) != by_record.hashes([], ["7"])
    # where the data name no patients, each record is one
    assert by_patient.allowed(samples("7", "9")).record_ids == ("9",)


def test_versions_that_know_no_patients_still_read_the_ledger(tmp_path: Path) -> None:
    """They take from each line after the first a hash of a record: none is lost, and a patient's stands for nobody."""
    held = ledger(tmp_path, "a")
    held.withdraw(["b"], "consent", DAY, patients=["a", "c"])
    salt, *lines = map(json.loads, held.path.read_text().splitlines())
    known = {line["record"] for line in lines}
    hashed = {name: hashlib.sha256(f"{salt['salt']}/{name}".encode()).hexdigest() for name in "abc"}
    assert len(known) == 4
    assert {name for name, digest in hashed.items() if digest in known} == {"a", "b"}
