"""Decide, answer and record each instruction, at a real hospital or at a simulated site."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from client.consent.answered import answer_entries
from client.consent.approvals import Approvals, Proposal
from client.consent.audit import AuditLog
from client.consent.fewest import Fewest
from client.consent.policy import Policy, load_policy, refuse_corrections, refuse_when_closed
from client.consent.settings import load_site
from client.hospital.admission import answers_to_take_over, refuse_forbidden, refuse_unapproved
from client.hospital.announcement import announcement
from client.hospital.site_opening import deployed_site, localised, simulated_site
from client.hospital.statistics import own_statistics
from client.state.answer_ledger import Answering, AnswerLedger, Question
from client.steps.parcels import arriving
from client.steps.site import Site
from dynammo_core.configuration.approval import config_from_json
from dynammo_core.configuration.config import Config
from dynammo_core.experiment import experiment_from_json
from dynammo_core.plan import Action
from dynammo_core.support.errors import ConfigError
from dynammo_core.wire.announcement import Announcement
from dynammo_core.wire.protocol import Instruction, Phase, Report
from dynammo_core.wire.statistics import Statistics


@dataclass(frozen=True)
class Request:
    """An instruction as received; its experiment is validated once, on first use.

    Attributes:
        instruction: with the tensors that were sent.
        hashes: SHA-256 of every tensor by name; the site may already have some of them.
    """

    instruction: Instruction
    hashes: Mapping[str, str]

    @cached_property
    def config(self) -> Config[Any]:
        """Return the experiment's configuration, as the server wrote it.

        Raises:
            ProtocolError: the text is not JSON; ConfigError: it is not a valid configuration.
        """
        return config_from_json(self.instruction.experiment)

    @cached_property
    def proposal(self) -> Proposal:
        """Return the proposal that a person has to approve before the instruction is answered."""
        return Proposal.of(self.config, run=self.instruction.run[:200])


@dataclass(frozen=True)
class Answer:
    """An answer before it leaves.

    Attributes:
        instruction: the whole instruction that it answers.
        wire: the report as it travels.
        site: the site that answers.
        phase: the exchange of secure aggregation that it belongs to, if any.
        again: whether it was recorded when it was first asked for.
    """

    instruction: Instruction
    wire: Report
    site: Site
    phase: Phase | None = None
    again: bool = False


class Host(Protocol):
    """Decides whether a request may be answered, opens the site that answers it, and records what leaves."""

    def admit(self, request: Request) -> None:
        """Refuse a request that may not be answered here, before any image is read."""

    def open(self, request: Request) -> Site:
        """Open the site that a request is for."""

    def answering(self, request: Request, site: Site) -> Answering:
        """Return an object that answers a request, from the record or by computing it."""

    def record(self, answer: Answer) -> None:
        """Record an answer before it leaves."""

    def record_refusal(self, asked: str, code: int, error: Exception) -> None:
        """Record that a message of the type `asked` was refused."""

    def announce(self) -> Announcement:
        """Return the classes that can be learnt here, with bands of their numbers of images."""

    def statistics(self) -> tuple[Statistics, Fewest]:
        """Return counts of the images, and the least that one may tell of."""

    def record_told(self, told: Announcement | Statistics) -> None:
        """Record, before it leaves, what is told without an experiment."""


class Hospital:
    """One hospital as one message finds it: settings, policy, approvals and audit log.

    An object serves one message. It reads `site.yaml` and `policy.yaml` once, so that an experiment runs under the
    policy that admitted it. The next message reads them again, so that changes apply at once.

    Args:
        site_yaml: the hospital's settings.

    Raises:
        ConfigError: the settings are invalid.
    """

    def __init__(self, site_yaml: Path) -> None:
        self.settings = load_site(site_yaml)
        self.approvals = Approvals(self.settings.approvals)
        self.audit = AuditLog(self.settings.audit)

    @cached_property
    def policy(self) -> Policy:
        """Return the policy, read on first use, so that a refusal is recorded even if it cannot be read.

        Raises:
            ConfigError: it cannot be read.
        """
        return load_policy(self.settings.policy)

    def admit(self, request: Request, now: datetime | None = None) -> None:
        """Refuse what the policy forbids or nobody has approved; file new proposals for `dynammo-site approve`.

        Raises:
            PolicyError: the policy forbids the experiment, or the site answers at other times.
            NotApproved: nobody has approved it in this version of the code, or it was rejected or revoked.
            DynammoError: the experiment is not valid, or the policy or the decisions cannot be read.
        """
        decision = None
        if self._asks_for_approval:
            decision = self.approvals.state(request.proposal)
            if decision is None:
                self.approvals.ask(request.proposal)
        refuse_forbidden(self.policy, request.config, self.settings.policy)
        if self._asks_for_approval:
            refuse_unapproved(request.proposal, decision)
        refuse_when_closed(self.policy, now or datetime.now().astimezone())
        for corrections in (request.instruction.correction, request.instruction.corrected):
            refuse_corrections(self.policy, corrections)

    def open(self, request: Request) -> Site:
        """Open this hospital for a run, after checking that its answer can be recorded.

        Raises:
            ConfigError: the experiment needs something that the site's settings do not name.
            ProtocolError: the instruction is for another site.
            CheckpointError: the audit log cannot be written.
        """
        instruction = request.instruction
        experiment = localised(request.config, self.settings)
        approved = request.proposal.experiment_hash
        site = deployed_site(experiment, instruction.site, self.settings, self.policy, instruction.run, approved)
        self.audit.check_writable()
        return site

    def answering(self, request: Request, site: Site) -> Answering:
        """Return an object that answers a request, from the ledger or by work that the ledger records."""
        question = Question.of(request.instruction, request.hashes, request.proposal)

        def bind(*, count: bool) -> AnswerLedger | None:
            if not self._asks_for_approval:
                return None
            run = request.instruction.run
            return answers_to_take_over(self.approvals, request.proposal, question, run, site, count=count)

        return Answering(site.answers, question, bind)

    def record(self, answer: Answer) -> None:
        """Write an answer into the audit log.

        Raises:
            CheckpointError: the log cannot be written.
        """
        site, instruction, phase = answer.site, answer.instruction, answer.phase
        experiment = site.experiment
        step = experiment.step(instruction.step, instruction.correction)
        exemplars = None
        if step.stage.action is Action.REMEMBER:
            exemplars = site.memory().samples.class_counts(experiment.classes)
        report = arriving(answer.wire, instruction, site) if phase is None else answer.wire
        names, sent = experiment.class_names, answer.wire.weights
        entries = answer_entries(instruction, step, report, names, sent, phase, exemplars, again=answer.again)
        self.audit.answered(entries)

    def record_refusal(self, asked: str, code: int, error: Exception) -> None:
        """Write a refusal into the audit log, with the error's text, which does not leave.

        Raises:
            CheckpointError: the log cannot be written.
        """
        self.audit.refused(asked, code, error)

    def announce(self) -> Announcement:
        """Return the classes that this hospital's labels name, with bands of their numbers of images.

        Raises:
            DynammoError: as `announcement`, or the policy cannot be read.
        """
        return announcement(self.settings, self.policy)

    def statistics(self) -> tuple[Statistics, Fewest]:
        """Return counts of this hospital's images, and the least that its policy lets one tell of.

        Raises:
            DynammoError: as `own_statistics`; or the site answers at other times.
        """
        refuse_when_closed(self.policy, datetime.now().astimezone())
        return own_statistics(self.settings, self.policy), self.policy.fewest

    def record_told(self, told: Announcement | Statistics) -> None:
        """Write an announcement or statistics into the audit log.

        Raises:
            CheckpointError: the log cannot be written.
        """
        if isinstance(told, Announcement):
            self.audit.announced(told)
        else:
            self.audit.counted(told)

    @property
    def _asks_for_approval(self) -> bool:
        return self.settings.approval == "required"


class SimulatedHost:
    """A process that plays simulated sites: it admits everything, works each time and records nothing."""

    def admit(self, request: Request) -> None:
        """Admit every request: whoever simulates owns the data."""

    def open(self, request: Request) -> Site:
        """Open the share of the data set that belongs to the site which the instruction names.

        Raises:
            DynammoError: the experiment is not valid.
        """
        instruction = request.instruction
        experiment = experiment_from_json(instruction.experiment)
        return simulated_site(experiment, instruction.site, Path(instruction.workspace), instruction.run)

    def answering(self, request: Request, site: Site) -> Answering:
        """Return an object that always computes the answer: no patients need protection here."""
        return Answering()

    def record(self, answer: Answer) -> None:
        """Record nothing."""

    def record_refusal(self, asked: str, code: int, error: Exception) -> None:
        """Record nothing."""

    def announce(self) -> Announcement:
        """Refuse to announce classes.

        Raises:
            ConfigError: always; a simulation's classes are in its configuration.
        """
        raise ConfigError(
            "a simulated site cannot announce classes", remedy="Start a real site with `dynammo-site start`"
        )

    def statistics(self) -> tuple[Statistics, Fewest]:
        """Refuse: `dynammo-sim statistics` counts without a message.

        Raises:
            ConfigError: always.
        """
        raise ConfigError("a simulated site is not asked for statistics", remedy="Use `dynammo-sim statistics`")

    def record_told(self, told: Announcement | Statistics) -> None:
        """Record nothing."""


def host_of(node_config: Mapping[str, object]) -> Host:
    """Return the host of a node: the hospital whose `site-config` it was started with, else one that simulates.

    Raises:
        ConfigError: the hospital's settings are wrong.
    """
    file = node_config.get("site-config")
    return SimulatedHost() if file is None else Hospital(Path(str(file)))
