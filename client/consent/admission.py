"""Whether an experiment may run at this site: what its policy and the approvals of its people say, before all else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from client.consent.approvals import Approvals, Proposal
from client.consent.approved_runs import ApprovedRuns
from client.consent.audit import AuditLog
from client.consent.policy import Policy, load_policy, refuse_corrections, refuse_when_closed, violations
from client.consent.settings import SiteSettings, load_site
from client.state.answer_ledger import Answering, AnswerLedger, Question
from client.steps.site import Site
from dynammo_core.experiment import config_from_json
from dynammo_core.support.errors import NotApproved, PolicyError
from dynammo_core.wire.protocol import Instruction


@dataclass(frozen=True)
class Admission:
    """An experiment that may run here.

    Attributes:
        proposal: what a person has approved.
        approvals: where that stands; None at a site that asks for no approval.
    """

    proposal: Proposal
    approvals: Approvals | None

    def answering(self, instruction: Instruction, hashes: Mapping[str, str], site: Site) -> Answering:
        """What answers an instruction whose tensors have these hashes, once.

        A run that began with this very question and came no further was not let in by another site, say, and started
        anew: the new one takes its place among the runs that the approval covers, and gets what was answered then.
        """
        question, ledger = Question.of(instruction, hashes, self.proposal), site.answers

        def began_as_this(other: str) -> bool:
            return ledger is not None and ledger.of_run(other).began_with(question)

        def bind() -> AnswerLedger | None:
            if self.approvals is None or ledger is None:
                return None
            before = ApprovedRuns(self.approvals).bind(self.proposal, instruction.run, began_as_this)
            if before is None:
                return None
            if site.sums is not None:
                site.sums.adopt(before)
            return ledger.of_run(before)

        return Answering(ledger, question, bind)


def admit(instruction: Instruction, node_config: Mapping[str, object], now: datetime | None = None) -> Admission | None:
    """Before a hospital reads anything for an instruction: its policy allows it, and a person has approved it.

    What nobody has decided on is filed for `dynammo-site approve`. A simulated site admits everything: None.

    Raises:
        PolicyError: `policy.yaml` forbids the experiment, or it is not the time.
        NotApproved: nobody has approved it in this version of the code, or it was rejected or revoked.
        DynammoError: it is no experiment, or the settings, the policy or the decisions cannot be read.
    """
    if (file := node_config.get("site-config")) is None:
        return None
    settings = load_site(Path(str(file)))
    proposal = Proposal.of(config_from_json(instruction.experiment), run=instruction.run[:200])
    approvals, decision = Approvals(settings.approvals), None
    if settings.approval == "required":
        decision = approvals.state(proposal)
        if decision is None:
            approvals.file(proposal)
    policy = _refuse_forbidden(settings, proposal)
    if settings.approval == "required" and (decision is None or decision["verdict"] != "approved"):
        was = f"was {decision['verdict']} by {decision.get('by')}" if decision else "waits for an approval"
        raise NotApproved(
            f"the experiment {proposal.config.name} ({proposal.id[:16]}, code {proposal.code[:12]}) {was}",
            remedy="`dynammo-site approve` shows it, and what it changes",
        )
    refuse_when_closed(policy, now or datetime.now().astimezone())
    for corrections in (instruction.correction, instruction.corrected):
        refuse_corrections(policy, corrections)
    return Admission(proposal, approvals if settings.approval == "required" else None)


def approve_proposal(settings: SiteSettings, proposal: Proposal, by: str, runs: int = 1) -> None:
    """Approve what was proposed, or what will be, for so many runs; twice is as good as once.

    Raises:
        PolicyError: the site's policy forbids it.
        ConfigError: it is for a version of the code that knows other keys, or the policy cannot be read.
        CheckpointError: it cannot be recorded.
    """
    _refuse_forbidden(settings, proposal)
    Approvals(settings.approvals).decide(proposal, "approved", by, AuditLog(settings.audit), runs=runs)


def _refuse_forbidden(settings: SiteSettings, proposal: Proposal) -> Policy:
    policy = load_policy(settings.policy)
    if wrong := violations(policy, proposal.config):
        raise PolicyError(
            f"the policy of this site forbids the experiment: {'; '.join(wrong)}",
            remedy=f"Change {settings.policy}, if the hospital wants it" if settings.policy else "",
        )
    return policy
