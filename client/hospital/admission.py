"""Decide whether an experiment may run here, by the site's policy and its people's approvals."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from client.consent.approvals import Approvals, Proposal
from client.consent.approved_runs import ApprovedRuns
from client.consent.audit import AuditLog
from client.consent.policy import Policy, load_policy, violations
from client.consent.settings import SiteSettings
from client.state.answer_ledger import AnswerLedger, Question
from client.steps.site import Site
from dynammo_core.configuration.config import Config
from dynammo_core.support.errors import NotApproved, PolicyError


def refuse_forbidden(policy: Policy, config: Config[Any], policy_yaml: Path | None) -> None:
    """Refuse an experiment that the policy forbids.

    Args:
        policy: the site's policy.
        config: the experiment.
        policy_yaml: where the policy was read, if the site has one.

    Raises:
        PolicyError: the policy forbids it; the error lists why.
    """
    if wrong := violations(policy, config):
        raise PolicyError(
            f"this site's policy forbids the experiment: {'; '.join(wrong)}",
            remedy=f"If the hospital agrees to it, change {policy_yaml}" if policy_yaml else "",
        )


def refuse_unapproved(proposal: Proposal, decision: Mapping[str, Any] | None) -> None:
    """Refuse an experiment that nobody has approved.

    Args:
        proposal: the experiment, in this version of the code.
        decision: the last decision on it; None while it waits.

    Raises:
        NotApproved: it waits, or it was rejected or revoked.
    """
    if decision is None or decision["verdict"] != "approved":
        was = f"was {decision['verdict']} by {decision.get('by')}" if decision else "waits for your approval"
        raise NotApproved(
            f"the experiment {proposal.plain['name']} ({proposal.id[:16]}, code {proposal.code[:12]}) {was}",
            remedy="Review and decide on it with `dynammo-site approve`",
        )


def answers_to_take_over(
    approvals: Approvals, proposal: Proposal, question: Question, run: str, site: Site, *, count: bool
) -> AnswerLedger | None:
    """Check that an approval covers a run, or `count` it; return the answers of the run that it replaces, if any.

    An earlier run may have stopped after this very question, because another site refused it, for example. The new run
    then replaces it among the runs that the approval covers, and gets the answer that was given then.

    Raises:
        NotApproved: the approval covers other runs.
    """
    ledger = site.answers
    if ledger is None:
        return None
    runs = ApprovedRuns(approvals)
    bind = runs.count if count else runs.replaced
    before = bind(proposal, run, lambda other: ledger.of_run(other).began_with(question))
    if before is None:
        return None
    if count and site.sums is not None:
        site.sums.adopt(before)
    return ledger.of_run(before)


def approve_proposal(settings: SiteSettings, proposal: Proposal, by: str, runs: int = 1) -> None:
    """Approve an experiment for a number of runs; approving it twice changes nothing.

    Raises:
        PolicyError: the site's policy forbids it.
        ConfigError: the code does not know one of its keys, or the policy cannot be read.
        CheckpointError: it cannot be recorded.
    """
    refuse_forbidden(load_policy(settings.policy), proposal.config, settings.policy)
    Approvals(settings.approvals).decide(proposal, "approved", by, AuditLog(settings.audit), runs=runs)
