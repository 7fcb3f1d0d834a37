"""The records of a site that may never be chosen again, because consent was withdrawn: a ledger that only grows.

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

from client.state.chained_log import chain_line, read_chain
from dynammo_core.data.samples import Samples, Split
from dynammo_core.data.sources import select
from dynammo_core.memory.store import MemoryStore, ReplayMemory, locked_folder
from dynammo_core.support.errors import MemoryStoreError
from dynammo_core.support.files import write_atomically

LEDGER_FILE = "withdrawn.jsonl"
T = TypeVar("T", Samples, ReplayMemory)


class WithdrawalLedger:
    """The ledger in a site's memory folder, for all its runs.

    A chained log: the salt, then one line for each record, so that a lost or changed line is found: it would bring a
    record back. Only lost lines at the end are not.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / LEDGER_FILE

    def withdraw(self, ids: Sequence[str], reason: str, today: date) -> int:
        """Enter records, whether or not any memory holds them; returns how many were not there before.

        Raises:
            MemoryStoreError: the ledger is damaged; CheckpointError: it cannot be written. It stays as it was.
        """
        with locked_folder(self.path.parent):
            ledger = self._read()
            new = [digest for digest in dict.fromkeys(map(ledger.hash, ids)) if digest not in ledger.held]
            lines = [ledger.last]
            for digest in new:
                lines.append(chain_line({"record": digest, "reason": reason, "day": today.isoformat()}, lines[-1]))
            if new:
                write_atomically(self.path, ledger.content + b"".join(lines[1:]), mode=0o600)
        return len(new)

    def is_withdrawn(self, record_ids: Sequence[str]) -> NDArray[np.bool_]:
        """[N] whether each record is in the ledger.

        Raises:
            MemoryStoreError: the ledger is damaged, so that nobody knows.
        """
        ledger = self._read()
        if not ledger.held:
            return np.zeros(len(record_ids), dtype=np.bool_)
        return np.array([ledger.hash(record) in ledger.held for record in record_ids], dtype=np.bool_)

    def allowed(self, held: T) -> T:
        """Samples, or a memory, without the withdrawn records."""
        withdrawn = self.is_withdrawn(held.record_ids)
        return held.subset(np.flatnonzero(~withdrawn).tolist()) if withdrawn.any() else held

    def allowed_split(self, split: Split) -> Split:
        """A part of a data set without the withdrawn records, so that none of them is ever read."""
        withdrawn = self.is_withdrawn(split.record_ids)
        return select(split, np.flatnonzero(~withdrawn)) if withdrawn.any() else split

    def purge(self, store: MemoryStore) -> int:
        """Take all withdrawn records out of a stored memory; returns how many exemplars went."""
        with store.locked():
            memory = store.load()
            kept = self.allowed(memory)
            if kept is not memory:
                store.save(kept)
        return len(memory.samples) - len(kept.samples)

    def hashes(self, record_ids: Sequence[str]) -> list[str]:
        """What the ledger calls withdrawn records: for a log, which names none."""
        return list(map(self._read().hash, record_ids))

    def __len__(self) -> int:
        return len(self._read().held)

    def _read(self) -> _Ledger:
        """As it lies on the disk; before the first withdrawal, a new salt and nothing else."""
        if not self.path.exists():
            salt = os.urandom(16).hex()
            first = chain_line({"salt": salt}, b"")
            return _Ledger(first, first, salt, frozenset())
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
    held: frozenset[str]

    def hash(self, record_id: str) -> str:
        return hashlib.sha256(f"{self.salt}/{record_id}".encode("utf-8", "surrogatepass")).hexdigest()


def _parse(content: bytes) -> _Ledger:
    chain = read_chain(content)
    if not chain.entries or chain.cut_off or chain.open_end:
        raise ValueError("it is empty, or its end is cut off")
    first, *others = (entry.fields for entry in chain.entries)
    last = content[content.rfind(b"\n", 0, -1) + 1 :]
    return _Ledger(content, last, str(first["salt"]), frozenset(str(fields["record"]) for fields in others))
