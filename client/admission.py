"""Whether an experiment may run at this site: what its policy and the approvals of its people say, before all else."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from client.approvals import Approvals, Proposal
from client.audit import AuditLog
from client.policy import Policy, load_policy, refuse_when_closed, violations
from client.settings import SiteSettings, load_site
from dynammo_core.errors import NotApproved, PolicyError
from dynammo_core.experiment import config_from_json
from dynammo_core.protocol import Instruction


def admit(instruction: Instruction, node_config: Mapping[str, object], now: datetime | None = None) -> None:
    """Before a hospital reads anything for an instruction: its policy allows it, and a person has approved it.

    What nobody has decided on is filed for `dynammo-site approve`. A simulated site admits everything.

    Raises:
        PolicyError: `policy.yaml` forbids the experiment, or it is not the time.
        NotApproved: nobody has approved it in this version of the code, or it was rejected or revoked.
        DynammoError: it is no experiment, or the settings, the policy or the decisions cannot be read.
    """
    if (file := node_config.get("site-config")) is None:
        return
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


def approve_proposal(settings: SiteSettings, proposal: Proposal, by: str) -> None:
    """Approve what was proposed, or what will be; twice is as good as once.

    Raises:
        PolicyError: the site's policy forbids it.
        ConfigError: it is for a version of the code that knows other keys, or the policy cannot be read.
        CheckpointError: it cannot be recorded.
    """
    _refuse_forbidden(settings, proposal)
    Approvals(settings.approvals).decide(proposal, "approved", by, AuditLog(settings.audit))


def _refuse_forbidden(settings: SiteSettings, proposal: Proposal) -> Policy:
    policy = load_policy(settings.policy)
    if wrong := violations(policy, proposal.config):
        raise PolicyError(
            f"the policy of this site forbids the experiment: {'; '.join(wrong)}",
            remedy=f"Change {settings.policy}, if the hospital wants it" if settings.policy else "",
        )
    return policy
