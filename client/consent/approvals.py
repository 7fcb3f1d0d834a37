"""What a person at this site has approved, and what waits for that: nothing new runs on its images before.

An approval is for one experiment in one version of the code. A folder holds each proposal as a file that bears the hash
of its content as a name, and `decisions.jsonl`, whose lines are chained as those of the audit log are.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

from client.consent.audit import AuditLog
from client.state.chained_log import append, read_chain
from dynammo_core.configuration.config import WEIGHTS_BY_NAME, Config
from dynammo_core.experiment import code_hash, config_from_json
from dynammo_core.support.errors import CheckpointError, NotApproved
from dynammo_core.support.files import write_atomically

DECISIONS = "decisions.jsonl"
MOST_WAITING, LONGEST = 100, 1_000_000
"""Proposals that wait, and characters of one: a server that sends nonsense shall not fill the disk with it."""

Verdict = Literal["approved", "rejected", "revoked"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)


@dataclass(frozen=True)
class Proposal:
    """An experiment that somebody wants to run here, in one version of the code.

    Attributes:
        experiment: the configuration as canonical JSON, without the places on a server's disk that no site reads: so
            the file that the operator sent by mail is the experiment that comes with the run.
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
        """What is to be approved before a configuration may run here, in the code that is at work now."""
        weights = config.backbone.weights
        name = weights if weights in WEIGHTS_BY_NAME else Path(weights).name
        plain = config.model_copy(
            update={
                "data": config.data.model_copy(update={"root": None}),
                "backbone": config.backbone.model_copy(update={"weights": name}),
            }
        )
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        return Proposal(plain.canonical_json(), code_hash(), run, now)

    @cached_property
    def config(self) -> Config[Any]:
        """The configuration.

        Raises:
            ConfigError: this version of the code does not know it.
        """
        return config_from_json(self.experiment)

    @cached_property
    def plain(self) -> dict[str, Any]:
        """The configuration as plain data, whatever version of the code it is for."""
        return dict(json.loads(self.experiment))

    @cached_property
    def experiment_hash(self) -> str:
        """SHA-256 of the experiment; that of the operator's, where he names no places."""
        return _sha256(self.experiment)

    @cached_property
    def id(self) -> str:
        """SHA-256 of experiment and code together, as 64 hexadecimal digits: what a person approves."""
        return _sha256(f"{self.experiment_hash} {self.code}")


class Approvals:
    """The folder of proposals and decisions, for its owner alone."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def state(self, proposal: Proposal) -> Mapping[str, Any] | None:
        """The last decision on a proposal, or None while it waits.

        Raises:
            CheckpointError: the decisions were changed, or cannot be read.
        """
        return self.decisions().get(proposal.id)

    def decisions(self) -> dict[str, Mapping[str, Any]]:
        """The last decision on each proposal, in the order of these decisions.

        Raises:
            CheckpointError: the decisions were changed, or cannot be read.
        """
        path = self.folder / DECISIONS
        last: dict[str, Mapping[str, Any]] = {}
        try:
            for entry in read_chain(path.read_bytes()).entries:
                id_, verdict = entry.fields["proposal"], entry.fields["verdict"]
                if not isinstance(id_, str) or verdict not in VERDICTS:
                    raise ValueError(f"{verdict!r} is no decision")
                last.pop(id_, None)
                last[id_] = entry.fields
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror}", remedy="Permit reading it") from error
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"the decisions in {path} were changed ({type(error).__name__}: {error})",
                remedy="Compare them with `dynammo-site audit report` and a backup; without them nothing is approved: "
                "move the file away, and approve anew",
            ) from error
        return last

    def contradictions(self, audit: AuditLog) -> list[str]:
        """Where the decisions are not those that the audit log tells of: lines cut off an end show in no chain.

        Raises:
            CheckpointError: the decisions or the audit log were changed.
        """
        here = {id_: str(one["verdict"]) for id_, one in self.decisions().items()}
        chain = audit.read().entries if audit.path.exists() else ()
        told = [entry.fields for entry in chain if entry.fields.get("event") in VERDICTS]
        there = {str(fields.get("proposal")): str(fields["event"]) for fields in told}
        return [
            f"{id_[:16]} is {here.get(id_, 'not decided')}, and by the audit log {there.get(id_, 'not decided')}"
            for id_ in sorted({*here, *there})
            if here.get(id_) != there.get(id_)
        ]

    def proposals(self) -> list[Proposal]:
        """All that was ever proposed, the oldest first; files that are not what their names say are left out."""
        try:
            files = [path for path in self.folder.iterdir() if re.fullmatch(r"[0-9a-f]{64}\.json", path.name)]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise CheckpointError(f"{self.folder} cannot be read: {error}", remedy="Permit reading it") from error
        found = [proposal for path in files if (proposal := _read(path)) is not None]
        return sorted(found, key=lambda proposal: (proposal.first_seen, proposal.id))

    def waiting(self) -> list[Proposal]:
        """The proposals that nobody has decided on."""
        decided = self.decisions()
        return [proposal for proposal in self.proposals() if proposal.id not in decided]

    def approved(self) -> list[Proposal]:
        """The proposals that are approved now, the last decision last."""
        known = {proposal.id: proposal for proposal in self.proposals()}
        decided = self.decisions()
        return [known[id_] for id_, one in decided.items() if one["verdict"] == "approved" and id_ in known]

    def file(self, proposal: Proposal) -> None:
        """Keep a proposal for a person to look at, once.

        Raises:
            NotApproved: too many wait already, or it is too long to be read by anybody.
            CheckpointError: it cannot be written.
        """
        path = self.folder / f"{proposal.id}.json"
        if _read(path) is not None:
            return
        if len(proposal.experiment) > LONGEST or len(self.waiting()) >= MOST_WAITING:
            raise NotApproved(
                f"the experiment {proposal.id[:16]} is not approved, and too long or one of too many to be kept",
                remedy=f"Decide on those that wait in {self.folder} (at most {MOST_WAITING}): `dynammo-site approve`",
            )
        self._make_folder()
        write_atomically(path, json.dumps(asdict(proposal), indent=1).encode() + b"\n", mode=0o600)

    def covered(self, proposal: Proposal) -> int:
        """How many runs of an experiment the last decision allows."""
        decision = self.state(proposal)
        return int(decision.get("runs", 1)) if decision and decision["verdict"] == "approved" else 0

    def decide(self, proposal: Proposal, verdict: Verdict, by: str, audit: AuditLog, runs: int = 1) -> None:
        """Record what a person decided: first in the audit log, then here, where it counts from then on.

        Args:
            proposal: what was decided on.
            verdict: the decision.
            by: who decided.
            audit: the site's audit log.
            runs: of an approval, how many runs of the experiment it covers.

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

    def _make_folder(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.folder.chmod(0o700)
        except OSError as error:
            raise CheckpointError(
                f"the folder {self.folder} cannot be made: {error.strerror}", remedy="Permit writing there"
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
        raise CheckpointError(f"{path} cannot be written: {error.strerror}", remedy="Permit writing there") from error


def _read(path: Path) -> Proposal | None:
    """A proposal as `Approvals.file` wrote it; None if there is none, or it is not the one that its name says."""
    try:
        proposal = Proposal(**json.loads(path.read_bytes()))
        fields = (proposal.experiment, proposal.code, proposal.run, proposal.first_seen, proposal.plain["name"])
        return proposal if all(isinstance(f, str) for f in fields) and f"{proposal.id}.json" == path.name else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
