"""Record what leaves this site, and what its memory takes in and drops: nothing leaves unrecorded."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from client.consent.chained_log import Chain, append, read_chain
from dynammo_core.plan import Action, Step
from dynammo_core.support.errors import CheckpointError
from dynammo_core.wire.announcement import Announcement
from dynammo_core.wire.protocol import Instruction, Phase, Report, tensor_bytes
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

    def answered(
        self,
        instruction: Instruction,
        step: Step,
        report: Report,
        class_names: tuple[str, ...],
        wire: Mapping[str, Tensor],
        phase: Phase | None = None,
        exemplars_held: Sequence[int] | None = None,
        *,
        again: bool = False,
    ) -> None:
        """Record an answer before it leaves, and after `remember` the content of the memory.

        Args:
            instruction: what was asked; the log keeps a hash of its experiment.
            step: the step it names.
            report: the checked answer.
            class_names: the experiment's classes, in the order of `class_counts`.
            wire: its tensors as they travel, whose bytes are recorded; norms are those of the report.
            phase: the exchange of secure aggregation that it answers, if any.
            exemplars_held: exemplars per class after `remember`, if the report does not hold them.
            again: whether the answer was recorded when it was first asked for.

        Raises:
            CheckpointError: the log cannot be written; so do all other methods.
        """
        run, counts = {"run": instruction.run}, report.numbers.get("class_counts")
        entries: list[dict[str, Any]] = []
        kept = counts if exemplars_held is None else exemplars_held
        if step.stage.action is Action.REMEMBER and isinstance(kept, Sequence):
            exemplars = {name: count for name, count in zip(class_names, kept, strict=True) if count}
            entries.append({"event": "memory", **run, "task": step.task, "exemplars": exemplars})
        place = {"task": step.task, "stage": step.stage.name, "round": step.round, "action": step.stage.action.value}
        if phase is not None:
            place["exchange"] = phase.value
        left = {
            "abstained": report.abstained,
            "bytes": tensor_bytes(wire),
            "norm": norm(report.weights),
            "tensors": _groups(report.weights, wire),
            "numbers": sorted(report.numbers),
            "class_counts": counts,
        }
        if again:
            left["again"] = True
        if "epsilon" in report.numbers:
            left["epsilon"] = report.numbers["epsilon"]
        experiment = hashlib.sha256(instruction.experiment.encode("utf-8", "surrogatepass")).hexdigest()
        hashes = {"experiment": experiment, "code": instruction.code_hash}
        self._append(*entries, {"event": "answered", **run, **hashes, **place, **left})

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


def norm(weights: Mapping[str, Tensor]) -> float:
    """Return the L2 norm of all tensors together, added up in float64."""
    return math.sqrt(sum(float(torch.linalg.vector_norm(t.double())) ** 2 for t in weights.values()))


def _groups(weights: Mapping[str, Tensor], wire: Mapping[str, Tensor]) -> dict[str, dict[str, float]]:
    """Return number, bytes and norm of the tensors by the first two parts of their names, such as heads.task1."""
    groups: dict[str, tuple[dict[str, Tensor], dict[str, Tensor]]] = {}
    for place, tensors in enumerate((weights, wire)):
        for name, tensor in tensors.items():
            group = ".".join(name.partition(":")[0].split(".")[:2])
            groups.setdefault(group, ({}, {}))[place][name] = tensor
    return {
        group: {"count": len(own), "bytes": tensor_bytes(sent), "norm": norm(own)}
        for group, (own, sent) in groups.items()
    }
