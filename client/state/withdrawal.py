"""The records and patients of a site that may never be chosen again: a ledger of withdrawn consent that only grows.

A patient's entry keeps out images that arrive later, too.

The ledger holds salted SHA-256 hashes, not ids: a list of ids would itself be a list of patients, kept for good. The
salt is the site's own, so two sites' ledgers cannot be compared, nor looked up in tables made beforehand. Who has the
file and guesses an id can still test that guess, since ids are short; so the file is for its owner alone.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from client.consent.chained_log import chain_line, read_chain
from dynammo_core.data.samples import Samples, Split
from dynammo_core.data.sources import select
from dynammo_core.memory.private_files import locked_folder, write_private
from dynammo_core.memory.store import MemoryStore, ReplayMemory
from dynammo_core.support.errors import MemoryStoreError

LEDGER_FILE = "withdrawn.jsonl"
PATIENT = "patient"
"""Kind of the lines that stand for patients; a line without a kind stands for a record."""
T = TypeVar("T", Samples, ReplayMemory)


class WithdrawalLedger:
    """The ledger in a site's memory folder, for all its runs.

    A chained log: the salt, then one line for each record or patient, so that a lost or changed line is found: it would
    bring a record back. Only lost lines at the end are not. Versions that know no patients read a patient's line as
    that of a record which nobody has.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / LEDGER_FILE

    def withdraw(self, ids: Sequence[str], reason: str, today: date, *, patients: Sequence[str] = ()) -> int:
        """Enter records and patients, whether or not they are here; return how many were not entered before.

        Raises:
            MemoryStoreError: the ledger is damaged; CheckpointError: it cannot be written. It stays as it was.
        """
        with locked_folder(self.path.parent):
            ledger = self._read()
            when = {"reason": reason, "day": today.isoformat()}
            records, persons = dict.fromkeys(map(ledger.hash, ids)), dict.fromkeys(map(ledger.patient_hash, patients))
            new = [{"record": digest, **when} for digest in records if digest not in ledger.records]
            new += [{"record": digest, "kind": PATIENT, **when} for digest in persons if digest not in ledger.patients]
            lines = [ledger.last]
            for fields in new:
                lines.append(chain_line(fields, lines[-1]))
            if new:
                write_private(self.path, ledger.content + b"".join(lines[1:]))
        return len(new)

    def is_withdrawn(self, record_ids: Sequence[str], patient_ids: Sequence[str] | None = None) -> NDArray[np.bool_]:
        """Return, for each of N records, whether it or its patient is in the ledger; without patients it is its own.

        Raises:
            MemoryStoreError: the ledger is damaged, so that nobody knows.
        """
        ledger = self._read()
        withdrawn = np.zeros(len(record_ids), dtype=np.bool_)
        if ledger.records:
            withdrawn |= np.array([ledger.hash(record) in ledger.records for record in record_ids], dtype=np.bool_)
        if ledger.patients:
            persons = map(ledger.patient_hash, record_ids if patient_ids is None else patient_ids)
            withdrawn |= np.array([person in ledger.patients for person in persons], dtype=np.bool_)
        return withdrawn

    def allowed(self, records: T) -> T:
        """Return samples, or a memory, without the withdrawn records."""
        withdrawn = self.is_withdrawn(records.record_ids, records.patient_ids)
        return records.subset(np.flatnonzero(~withdrawn).tolist()) if withdrawn.any() else records

    def allowed_split(self, split: Split) -> Split:
        """Return a part of a data set without the withdrawn records, so that none of them is ever read."""
        withdrawn = self.is_withdrawn(split.record_ids, split.patient_ids)
        return select(split, np.flatnonzero(~withdrawn)) if withdrawn.any() else split

    def purge(self, store: MemoryStore) -> int:
        """Take all withdrawn records out of a stored memory; returns how many exemplars went."""
        with store.locked():
            memory = store.load()
            kept = self.allowed(memory)
            if kept is not memory:
                store.save(kept)
        return len(memory.samples) - len(kept.samples)

    def hashes(self, record_ids: Sequence[str], patients: Sequence[str] = ()) -> list[str]:
        """Return the hashes by which the ledger knows records and patients, for a log that must not name them."""
        ledger = self._read()
        return [*map(ledger.hash, record_ids), *map(ledger.patient_hash, patients)]

    def count(self) -> tuple[int, int]:
        """Return how many records and how many patients are withdrawn."""
        ledger = self._read()
        return len(ledger.records), len(ledger.patients)

    def _read(self) -> _Ledger:
        """Return the ledger as it lies on the disk; before the first withdrawal, a new salt and no records."""
        if not self.path.exists():
            salt = os.urandom(16).hex()
            first = chain_line({"salt": salt}, b"")
            return _Ledger(first, first, salt, frozenset(), frozenset())
        try:
            return _parse(self.path.read_bytes())
        except (OSError, ValueError, KeyError) as error:
            raise MemoryStoreError(
                f"the ledger of withdrawn records {self.path} cannot be read ({type(error).__name__}: {error})",
                remedy="Restore it from a backup: without it, this site would choose withdrawn records again",
            ) from error


class _Ledger(NamedTuple):
    content: bytes
    last: bytes
    salt: str
    records: frozenset[str]
    patients: frozenset[str]

    def hash(self, record_id: str) -> str:
        return _digest(f"{self.salt}/{record_id}")

    def patient_hash(self, patient: str) -> str:
        """Hash a patient as no record is hashed: an id may name a record and, elsewhere, a patient."""
        return _digest(f"{PATIENT}/{self.salt}/{patient}")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _parse(content: bytes) -> _Ledger:
    chain = read_chain(content)
    if not chain.entries or chain.cut_off or chain.open_end:
        raise ValueError("it is empty, or its end is cut off")
    first, *others = (entry.fields for entry in chain.entries)
    last = content[content.rfind(b"\n", 0, -1) + 1 :]
    records, patients = (
        frozenset(str(fields["record"]) for fields in others if (fields.get("kind") == PATIENT) is of_patients)
        for of_patients in (False, True)
    )
    return _Ledger(content, last, str(first["salt"]), records, patients)
