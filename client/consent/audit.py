"""Record what leaves this site, and what its memory takes in and drops: nothing leaves unrecorded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from client.consent.chained_log import Chain, append, read_chain
from dynammo_core.support.errors import CheckpointError

if TYPE_CHECKING:
    from dynammo_core.wire.announcement import Announcement
    from dynammo_core.wire.statistics import Statistics

TEXT = 2000
"""Most characters kept of an error's text, so that a server cannot fill the disk."""


class AuditLog:
    """An append-only file of JSON lines, mode 0600, each chained to the line before; it never leaves the site.

    A line is written before its answer is sent. So after a crash a line may describe an answer that never left, but no
    answer leaves without a line. An answer that is sent twice has two lines.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def check_writable(self) -> None:
        """Check, before any work, that the log can be written.

        Raises:
            CheckpointError: the log cannot be opened for writing.
        """
        self._append()

    def answered(self, entries: Iterable[Mapping[str, Any]]) -> None:
        """Record an answer before it leaves, as `answer_entries` describes it.

        Raises:
            CheckpointError: the log cannot be written; so do all other methods.
        """
        self._append(*entries)

    def refused(self, asked: str, code: int, error: Exception) -> None:
        """Record a failed step with its text, which does not leave; `asked` is the message's type."""
        text = str(error)[:TEXT]
        self._append({"event": "refused", "asked": asked, "code": code, "class": type(error).__name__, "text": text})

    def announced(self, announcement: Announcement) -> None:
        """Record names of classes and bands of their numbers of images, which are about to leave."""
        self._append({"event": "announced", "classes": dict(announcement.bands)})

    def counted(self, statistics: Statistics) -> None:
        """Record the statistics of this site's images, which are about to leave."""
        self._append({"event": "counted", **statistics.as_fields()})

    def purged(self, records: int, exemplars: int, selection: str, *, patients: int = 0) -> None:
        """Record a withdrawal: its numbers of records and patients, and the `selection` that named them.

        Args:
            records: how many records were withdrawn.
            exemplars: how many exemplars went.
            selection: what named the records: record, patient, class or date.
            patients: how many patients were withdrawn with all their records to come.
        """
        persons = {"patients": patients} if patients else {}
        numbers = {"records": records, **persons, "exemplars": exemplars}
        self._append({"event": "purged", **numbers, "selection": selection})

    def decided(self, decision: Mapping[str, Any]) -> None:
        """Record that a person approved or rejected an experiment here, or revoked an approval."""
        self._append({"event": decision["verdict"], **{key: decision[key] for key in decision if key != "verdict"}})

    def read(self) -> Chain:
        """Read and check all lines.

        Raises:
            CheckpointError: the log is missing, or a line is not as it was written.
        """
        try:
            return read_chain(self.path.read_bytes())
        except OSError as error:
            raise CheckpointError(
                f"the audit log {self.path} cannot be read: {error.strerror}",
                remedy="A site creates it with its first answer; if this site has answered, somebody removed the log",
            ) from error
        except ValueError as error:
            raise CheckpointError(
                f"the audit log {self.path} was changed: {error}",
                remedy="That line or earlier ones were edited, removed or moved; compare the log with a backup",
            ) from error

    def _append(self, *entries: Mapping[str, Any]) -> None:
        time = datetime.now().astimezone().isoformat(timespec="seconds")
        try:
            append(self.path, [{"time": time, **entry} for entry in entries])
        except OSError as error:
            raise CheckpointError(
                f"cannot write the audit log {self.path}: {error.strerror}",
                remedy="Free disk space or give write permission: nothing leaves this site unrecorded",
            ) from error
