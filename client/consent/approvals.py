"""Keep proposals and people's decisions on them: nothing runs on the site's images without approval.

An approval is for one experiment in one version of the code. A folder holds each proposal in a file named after the
hash of its content, and `decisions.jsonl`, whose lines are chained like those of the audit log.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

from client.consent.audit import AuditLog
from client.consent.chained_log import append, read_chain
from dynammo_core.code_identity import code_hash
from dynammo_core.configuration.approval import approval_hash, config_from_json, experiment_hash, without_paths
from dynammo_core.configuration.config import Config
from dynammo_core.support.errors import CheckpointError, NotApproved
from dynammo_core.support.files import write_atomically

DECISIONS = "decisions.jsonl"
MOST_WAITING, LONGEST = 100, 1_000_000
"""Most waiting proposals, and most characters of one, so that a server cannot fill the disk."""

Verdict = Literal["approved", "rejected", "revoked"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)


@dataclass(frozen=True)
class Proposal:
    """An experiment that an operator wants to run here, in one version of the code.

    Attributes:
        experiment: the configuration as canonical JSON, without paths on the server's disk, which no site reads. So
            the file that the operator mailed and the run's configuration are the same experiment.
        code: hash of the code.
        run: the run that asked first; empty for what was approved in advance.
        first_seen: when, in this machine's time.
    """

    experiment: str
    code: str
    run: str
    first_seen: str

    @staticmethod
    def of(config: Config[Any], *, run: str = "") -> Proposal:
        """Return the proposal for a configuration under the running code."""
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        return Proposal(without_paths(config).canonical_json(), code_hash(config), run, now)

    @cached_property
    def config(self) -> Config[Any]:
        """Return the configuration.

        Raises:
            ConfigError: this version of the code does not know it.
        """
        return config_from_json(self.experiment)

    @cached_property
    def plain(self) -> dict[str, Any]:
        """Return the configuration as plain data, whatever version of the code it is for."""
        return dict(json.loads(self.experiment))

    @cached_property
    def experiment_hash(self) -> str:
        """Return the SHA-256 of the experiment: the operator's own if it names no paths."""
        return experiment_hash(self.experiment)

    @cached_property
    def id(self) -> str:
        """Return the SHA-256 of experiment and code, as 64 hexadecimal digits: what a person approves."""
        return approval_hash(self.experiment, self.code)


class Approvals:
    """The folder of proposals and decisions, for its owner alone."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def state(self, proposal: Proposal) -> Mapping[str, Any] | None:
        """Return the last decision on a proposal, or None while it waits.

        Raises:
            CheckpointError: the decisions were changed, or cannot be read.
        """
        return self.decisions().get(proposal.id)

    def decisions(self) -> dict[str, Mapping[str, Any]]:
        """Return the last decision on each proposal, in the order of these decisions.

        Raises:
            CheckpointError: the decisions were changed, or cannot be read.
        """
        path = self.folder / DECISIONS
        last: dict[str, Mapping[str, Any]] = {}
        try:
            for entry in read_chain(path.read_bytes()).entries:
                id_, verdict = entry.fields["proposal"], entry.fields["verdict"]
                if not isinstance(id_, str) or verdict not in VERDICTS:
                    raise ValueError(f"{verdict!r} is not a decision")
                last.pop(id_, None)
                last[id_] = entry.fields
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror}", remedy="Give read permission") from error
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"the decisions in {path} were changed ({type(error).__name__}: {error})",
                remedy="Compare them with `dynammo-site audit report` and a backup. Without them nothing is approved: "
                "move the file away, and approve again",
            ) from error
        return last

    def contradictions(self, audit: AuditLog) -> list[str]:
        """List where the decisions contradict the audit log: a chain alone does not show missing lines at its end.

        Raises:
            CheckpointError: the decisions or the audit log were changed.
        """
        here = {id_: str(one["verdict"]) for id_, one in self.decisions().items()}
        chain = audit.read().entries if audit.path.exists() else ()
        recorded = [entry.fields for entry in chain if entry.fields.get("event") in VERDICTS]
        there = {str(fields.get("proposal")): str(fields["event"]) for fields in recorded}
        return [
            f"{id_[:16]} is {here.get(id_, 'not decided')}, but {there.get(id_, 'not decided')} in the audit log"
            for id_ in sorted({*here, *there})
            if here.get(id_) != there.get(id_)
        ]

    def proposals(self) -> list[Proposal]:
        """List all proposals, the oldest first, without files whose content does not match their name."""
        try:
            files = [path for path in self.folder.iterdir() if re.fullmatch(r"[0-9a-f]{64}\.json", path.name)]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise CheckpointError(f"{self.folder} cannot be read: {error}", remedy="Give read permission") from error
        proposals = [proposal for path in files if (proposal := _read(path)) is not None]
        return sorted(proposals, key=lambda proposal: (proposal.first_seen, proposal.id))

    def waiting(self) -> list[Proposal]:
        """List the proposals that nobody has decided on."""
        decided = self.decisions()
        return [proposal for proposal in self.proposals() if proposal.id not in decided]

    def approved(self) -> list[Proposal]:
        """List the proposals that are approved now, the last decision last."""
        known = {proposal.id: proposal for proposal in self.proposals()}
        decided = self.decisions()
        return [known[id_] for id_, one in decided.items() if one["verdict"] == "approved" and id_ in known]

    def ask(self, proposal: Proposal) -> None:
        """Keep what a run asks for now, in place of what it asked for before and nobody has decided on.

        A run asks for one experiment at a time: the operator has corrected it, or continues under newer code.

        Raises:
            NotApproved: as `file`.
            CheckpointError: it cannot be written, or what it replaces not be removed.
        """
        for other in self.waiting():
            if other.run == proposal.run and other.id != proposal.id:
                try:
                    self._file_of(other).unlink(missing_ok=True)
                except OSError as error:
                    raise CheckpointError(
                        f"{self._file_of(other)} cannot be removed: {error.strerror}", remedy="Give write permission"
                    ) from error
        self.file(proposal)

    def file(self, proposal: Proposal) -> None:
        """Keep a proposal for a person to look at, once.

        Raises:
            NotApproved: too many are waiting already, or it is too long for anyone to read.
            CheckpointError: it cannot be written.
        """
        path = self._file_of(proposal)
        if _read(path) is not None:
            return
        if len(proposal.experiment) > LONGEST or len(self.waiting()) >= MOST_WAITING:
            raise NotApproved(
                f"the experiment {proposal.id[:16]} is not approved or kept: it is too long, or too many are waiting",
                remedy=f"Decide on those in {self.folder} (at most {MOST_WAITING}) with `dynammo-site approve`",
            )
        self._make_folder()
        write_atomically(path, json.dumps(asdict(proposal), indent=1).encode() + b"\n", mode=0o600)

    def covered(self, proposal: Proposal) -> int:
        """Return how many runs of an experiment the last decision allows."""
        decision = self.state(proposal)
        return int(decision.get("runs", 1)) if decision and decision["verdict"] == "approved" else 0

    def decide(self, proposal: Proposal, verdict: Verdict, by: str, audit: AuditLog, runs: int = 1) -> None:
        """Record what a person decided: first in the audit log, then here, where it counts from then on.

        Args:
            proposal: what was decided on.
            verdict: the decision.
            by: who decided.
            audit: the site's audit log.
            runs: how many runs of the experiment an approval covers.

        Raises:
            CheckpointError: one of them cannot be written, or the decisions so far were changed.
        """
        self.decisions()
        self.file(proposal)
        hashes = {"proposal": proposal.id, "experiment": proposal.experiment_hash, "code": proposal.code}
        decision = {"verdict": verdict, "by": by, "name": proposal.plain["name"], **hashes}
        if verdict == "approved":
            decision["runs"] = runs
        audit.decided(decision)
        write_line(self.folder / DECISIONS, decision)

    def _file_of(self, proposal: Proposal) -> Path:
        return self.folder / f"{proposal.id}.json"

    def _make_folder(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.folder.chmod(0o700)
        except OSError as error:
            raise CheckpointError(
                f"the folder {self.folder} cannot be created: {error.strerror}", remedy="Give write permission"
            ) from error


def write_line(path: Path, fields: Mapping[str, Any]) -> None:
    """Append a line with the time to a chained log of decisions.

    Raises:
        CheckpointError: it cannot be written.
    """
    time = datetime.now().astimezone().isoformat(timespec="seconds")
    try:
        append(path, [{"time": time, **fields}])
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {error.strerror}", remedy="Give write permission") from error


def _read(path: Path) -> Proposal | None:
    """Return a proposal as `Approvals.file` wrote it; None if it is missing, or not the one that its name says."""
    try:
        proposal = Proposal(**json.loads(path.read_bytes()))
        fields = (proposal.experiment, proposal.code, proposal.run, proposal.first_seen, proposal.plain["name"])
        return proposal if all(isinstance(f, str) for f in fields) and f"{proposal.id}.json" == path.name else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
