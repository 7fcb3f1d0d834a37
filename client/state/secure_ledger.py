"""What a site remembers of secure aggregation: one secret for each run, and what it has told under it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from dynammo_core.memory.store import locked_folder
from dynammo_core.support.errors import MemoryStoreError, ProtocolError
from dynammo_core.support.files import write_atomically
from dynammo_core.wire.secure_aggregation.masking import KEY_BYTES, Context

LEDGER_FILE, OPENED_FILE = "secure.json", "opened-sums.json"


@dataclass
class _Content:
    """The file: the secret in hexadecimal, and by step what was told."""

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

    def secret(self) -> bytes:
        """The site's secret of this run, drawn when it is first asked for.

        Raises:
            MemoryStoreError: the file is damaged; so do the other methods.
            CheckpointError: it cannot be written; so do the other methods.
        """
        with self._changing() as content:
            return bytes.fromhex(content.secret)

    def mask(self, context: Context, roster: Mapping[int, bytes]) -> None:
        """A masked vector is about to leave. It may leave again, but in one attempt under one set of masks alone: the
        difference of two would tell masks.

        Raises:
            ProtocolError: in this attempt, one has left under other masks.
        """
        with self._changing() as content:
            told = [context.attempt.hex(), _hash(roster)]
            # Of every attempt, not of the last alone: its masks come back whenever the server names it again.
            if content.rosters.setdefault(f"{context.step}/{told[0]}", told[1]) != told[1]:
                raise ProtocolError(f"step {context.step}: another set of sites than before in one attempt")
            content.masked[str(context.step)] = told

    def open(self, context: Context, roster: Mapping[int, bytes], survivors: list[int]) -> None:
        """Shares are about to leave: of the survivors' own masks, and of the other sites' masking keys.

        In one attempt, both of one site would unmask its vector. In two attempts at a step, which bring the same
        vectors, the sums over two sets of sites differ by the vectors of those that are in one set alone.

        Raises:
            ProtocolError: this site sent no vector in this attempt, or opened this step for other survivors.
        """
        with self._changing() as content:
            step = str(context.step)
            if content.masked.get(step) != [context.attempt.hex(), _hash(roster)]:
                raise ProtocolError(f"step {step}: this site has sent no vector among these sites in this attempt")
            if content.opened.setdefault(step, _hash(survivors)) != _hash(survivors):
                raise ProtocolError(
                    f"step {step} was opened for other sites before: the two sums would tell what one site sent",
                    remedy="Repeat the step when the same sites take part",
                )

    @contextmanager
    def _changing(self) -> Iterator[_Content]:
        """The content, alone; what the block changes is written at its end, unless it raises."""
        with locked_folder(self.path.parent):
            content = self._read()
            before = asdict(content) if content else None
            content = content or _Content(os.urandom(KEY_BYTES).hex())
            yield content
            if asdict(content) != before:
                write_atomically(self.path, json.dumps(asdict(content)).encode(), mode=0o600)

    def _read(self) -> _Content | None:
        try:
            content = _Content(**json.loads(self.path.read_bytes()))
            if len(bytes.fromhex(content.secret)) != KEY_BYTES:
                raise ValueError("its secret is none")
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError) as error:
            raise MemoryStoreError(
                f"the ledger {self.path} cannot be read ({type(error).__name__}: {error})",
                remedy="Restore it from a backup, or delete it: the next attempt at a step then starts afresh",
            ) from error
        return content


class OpenedSums:
    """What a site opened in all runs of each experiment, in its memory folder.

    Two runs of one experiment ask for the same sums: over five sites in one and four of them in the other, their
    difference is what the fifth one sent. Other randomness in training does not hide counts or sums of features.

    Args:
        folder: the site's memory folder.
        experiment: SHA-256 of the experiment as it was approved, whatever the code.
    """

    def __init__(self, folder: Path, experiment: str) -> None:
        self.path = folder / OPENED_FILE
        self._experiment = experiment

    def open(self, step: int, survivors: list[int]) -> None:
        """The sum of a step over these sites is about to be told.

        Raises:
            ProtocolError: in another run it was told of other sites.
            MemoryStoreError: the file is damaged; CheckpointError: it cannot be written.
        """
        with locked_folder(self.path.parent):
            try:
                opened = json.loads(self.path.read_bytes()) if self.path.exists() else {}
                steps = opened.setdefault(self._experiment, {})
                before = steps.setdefault(str(step), survivors)
            except (OSError, ValueError, TypeError, AttributeError) as error:
                raise MemoryStoreError(
                    f"the list of opened sums {self.path} cannot be read ({type(error).__name__}: {error})",
                    remedy="Restore it from a backup; whoever deletes it lets other runs open other sums",
                ) from error
            if before != survivors:
                raise ProtocolError(
                    f"another run of this experiment opened step {step} for other sites: the two sums would tell what "
                    "one site sent",
                    remedy="Repeat the step when the same sites take part, or agree on another experiment",
                )
            write_atomically(self.path, json.dumps(opened).encode(), mode=0o600)


def _hash(told: Mapping[int, bytes] | list[int]) -> str:
    named = {str(site): key.hex() for site, key in told.items()} if isinstance(told, Mapping) else told
    return hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()
