"""Remember, for secure aggregation, a secret per run and what the site revealed under it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dynammo_core.memory.private_files import JsonFile
from dynammo_core.support.errors import MemoryStoreError, ProtocolError
from dynammo_core.wire.secure_aggregation.masking import KEY_BYTES, Context

LEDGER_FILE, OPENED_FILE = "secure.json", "opened-sums.json"


@dataclass
class _Content:
    """The file's content: the secret in hexadecimal, and what was revealed in each step."""

    secret: str
    masked: dict[str, list[str]] = field(default_factory=dict)  # last attempt, and hash of who took part in it
    rosters: dict[str, str] = field(default_factory=dict)  # of every attempt, by step and attempt
    opened: dict[str, str] = field(default_factory=dict)  # hash of the survivors


class SecureLedger:
    """A file in a site's folder of a run, mode 0600, written before what it tells of leaves.

    All keys and masks of the run come from its secret, so a step that is asked again is answered again, bit for bit,
    and a thief of the file who has listened to the whole run could unmask this site's vectors: he has its images beside
    it. Whoever deletes the file lets the next attempt at a step start afresh.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / LEDGER_FILE
        self._file = JsonFile(
            self.path,
            "the ledger",
            "Restore it from a backup, or delete it: the next attempt at a step then starts afresh",
            MemoryStoreError,
        )

    def secret(self) -> bytes:
        """Return the site's secret of this run, drawn on first use.

        Raises:
            MemoryStoreError: the file is damaged; so do the other methods.
            CheckpointError: it cannot be written; so do the other methods.
        """
        with self._changing() as content:
            return bytes.fromhex(content.secret)

    def mask(self, context: Context, roster: Mapping[int, bytes]) -> None:
        """Record a masked vector before it leaves. It may leave again, but in one attempt only under one set of masks:
        two would reveal masks by their difference.

        Raises:
            ProtocolError: in this attempt, one has left under other masks.
        """
        with self._changing() as content:
            attempt, sites = context.attempt.hex(), _hash(roster)
            # Of every attempt, not of the last alone: its masks come back whenever the server names it again.
            if content.rosters.setdefault(f"{context.step}/{attempt}", sites) != sites:
                raise ProtocolError(f"step {context.step}: the set of sites changed within one attempt")
            content.masked[str(context.step)] = [attempt, sites]

    def open(self, context: Context, roster: Mapping[int, bytes], survivors: list[int]) -> None:
        """Record, before they leave, shares of the survivors' own masks and of the other sites' masking keys.

        In one attempt, both of one site would unmask its vector. In two attempts at a step, which bring the same
        vectors, the sums over two sets of sites differ by the vectors of those that are in one set alone.

        Raises:
            ProtocolError: this site sent no vector in this attempt, or opened this step for other survivors.
        """
        with self._changing() as content:
            step = str(context.step)
            if content.masked.get(step) != [context.attempt.hex(), _hash(roster)]:
                raise ProtocolError(f"step {step}: this site did not send a vector among these sites in this attempt")
            if content.opened.setdefault(step, _hash(survivors)) != _hash(survivors):
                raise ProtocolError(
                    f"step {step} was already opened for other sites: the two sums could reveal what one site sent",
                    remedy="Repeat the step when the same sites take part",
                )

    @contextmanager
    def _changing(self) -> Iterator[_Content]:
        """Yield the content under a lock; changes are written at the end, unless the block raises."""
        with self._file.locked():
            content = self._file.read(_checked)
            before = asdict(content) if content else None
            content = content or _Content(os.urandom(KEY_BYTES).hex())
            yield content
            if asdict(content) != before:
                self._file.write(asdict(content))


def _checked(fields: Mapping[str, Any]) -> _Content:
    content = _Content(**fields)
    if len(bytes.fromhex(content.secret)) != KEY_BYTES:
        raise ValueError(f"its secret has {len(content.secret) // 2} bytes instead of {KEY_BYTES}")
    return content


class OpenedSums:
    """Records the sums that a site opened in all runs of each experiment.

    Two runs of one experiment ask for the same sums: over five sites in one and four of them in the other, their
    difference is what the fifth one sent. Other randomness in training does not hide counts or sums of features.

    Args:
        folder: the site's memory folder.
        experiment: SHA-256 of the experiment as it was approved, whatever the code.
    """

    def __init__(self, folder: Path, experiment: str) -> None:
        self.path = folder / OPENED_FILE
        self._file = JsonFile(
            self.path,
            "the list of opened sums",
            "Restore it from a backup; without it, other runs could open other sums",
            MemoryStoreError,
        )
        self._experiment = experiment

    def open(self, step: int, survivors: list[int]) -> None:
        """Record that the sum of a step over these sites is about to be revealed.

        Raises:
            ProtocolError: another run revealed it for other sites.
            MemoryStoreError: the file is damaged; CheckpointError: it cannot be written.
        """

        def recorded(content: Any) -> tuple[Any, Any]:
            """Return all experiments including this sum, and the sites that it was first opened for."""
            return content, content.setdefault(self._experiment, {}).setdefault(str(step), survivors)

        with self._file.locked():
            opened, before = self._file.read(recorded) or recorded({})
            if before != survivors:
                raise ProtocolError(
                    f"another run of this experiment opened step {step} for other sites: the two sums could reveal "
                    "what one site sent",
                    remedy="Repeat the step when the same sites take part, or agree on another experiment",
                )
            self._file.write(opened)


def _hash(sites: Mapping[int, bytes] | list[int]) -> str:
    """Return a SHA-256 of sites with their keys, or of their numbers alone."""
    named = {str(site): key.hex() for site, key in sites.items()} if isinstance(sites, Mapping) else sites
    return hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()
