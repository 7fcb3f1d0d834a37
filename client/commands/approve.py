"""`dynammo-site approve`: show experiments that wait for approval, and record a person's decision."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from client.consent.settings import SiteSettings, load_site
from dynammo_core.support.errors import CheckpointError, ConfigError
from dynammo_core.support.processes import account
from dynammo_core.support.terminal import Terminal, readable_errors

if TYPE_CHECKING:
    from client.consent.approvals import Approvals, Proposal, Verdict

console = Terminal(highlight=False, emoji=False)
SHORTEST = 8


def approve(
    site_yaml: Annotated[Path, typer.Argument(metavar="SITE.YAML", help="The site's settings.")] = Path("site.yaml"),
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="CONFIG", help="Approve in advance the experiment in this YAML file, as the operator sent it."
        ),
    ] = None,
    yes: Annotated[
        str | None, typer.Option(metavar="HASH", help="Approve the experiment with this hash, or its first digits.")
    ] = None,
    runs: Annotated[
        int, typer.Option(min=1, help="Total number of runs that the approval covers, including earlier ones.")
    ] = 1,
    reject: Annotated[str | None, typer.Option(metavar="HASH", help="Reject the experiment with this hash.")] = None,
    revoke: Annotated[
        str | None, typer.Option(metavar="HASH", help="Revoke the approval of the experiment with this hash.")
    ] = None,
    all_: Annotated[bool, typer.Option("--list", help="List all experiments and decisions, without asking.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print all details as JSON, without asking.")] = False,
    by: Annotated[str | None, typer.Option(help="Name of the person who decides.", show_default="the account")] = None,
) -> None:
    """Show the experiments that wait to run on this site's images, and approve or reject them."""
    with readable_errors():
        from client.consent.approvals import Approvals, Proposal
        from client.consent.audit import AuditLog
        from dynammo_core.configuration.config import load_config

        site = load_site(site_yaml)
        approvals = Approvals(site.approvals)
        contradictions = approvals.contradictions(AuditLog(site.audit))
        known = [Proposal.of(load_config(config))] if config else approvals.proposals()
        given = [(hash_, verdict) for verdict, hash_ in _verdicts(yes, reject, revoke).items() if hash_ is not None]
        if len(given) > 1:
            raise ConfigError("more than one decision was given", accepted="one of --yes, --reject, --revoke")
        if given:
            ((hash_, verdict),) = given
            proposal = _found(known, hash_)
            _decide(site, approvals, proposal, verdict, by or account(), runs)
            return
        chosen = known if all_ else [one for one in known if approvals.state(one) is None]
        if as_json:
            typer.echo(json.dumps(_fields(site, approvals, chosen), indent=2))
        elif all_:
            for proposal in chosen:
                console.say(f"{proposal.id[:16]}  {_state(approvals, proposal):<40} {proposal.plain['name']}")
        elif not chosen:
            console.say("No experiment is waiting for approval. What was approved, and for how many runs: --list")
        else:
            _ask(site, approvals, chosen, by or account(), runs)
        if contradictions:
            raise CheckpointError(
                f"the decisions in {site.approvals} contradict {site.audit}: {'; '.join(contradictions)}",
                remedy="A crash interrupted the writing, or somebody truncated a file: decide on each again",
            )


def _fields(site: SiteSettings, approvals: Approvals, chosen: Sequence[Proposal]) -> list[dict[str, Any]]:
    if not chosen:
        return []
    from client.commands.summary import fields  # and PyTorch: the methods know what leaves a site

    return [fields(site, approvals, proposal) for proposal in chosen]


def _verdicts(yes: str | None, reject: str | None, revoke: str | None) -> dict[Verdict, str | None]:
    return {"approved": yes, "rejected": reject, "revoked": revoke}


def _ask(site: SiteSettings, approvals: Approvals, waiting: Sequence[Proposal], person: str, runs: int) -> None:
    """Show each proposal, and ask for a decision unless the policy forbids it."""
    from client.commands.summary import forbidden, page

    answers: dict[str, Verdict | None] = {"approve": "approved", "reject": "rejected", "later": None}
    for proposal in waiting:
        for line in page(site, approvals, proposal):
            console.say(line)
        if forbidden(site, proposal):
            continue
        answer = ""
        while answer not in answers:
            if answer:
                console.say(f"{answer!r} is no answer. Accepted: {', '.join(answers)}.")
            answer = typer.prompt(f"{', '.join(answers)}?", default="later")
        if verdict := answers[answer]:
            _decide(site, approvals, proposal, verdict, person, runs)


def _decide(
    site: SiteSettings, approvals: Approvals, proposal: Proposal, verdict: Verdict, person: str, runs: int
) -> None:
    from client.consent.approved_runs import ApprovedRuns
    from client.consent.audit import AuditLog

    if verdict == "approved":
        from client.hospital.admission import approve_proposal

        approve_proposal(site, proposal, person, runs)
    else:
        approvals.decide(proposal, verdict, person, AuditLog(site.audit))
    console.say(f"{proposal.id[:16]} ({proposal.plain['name']}) was {verdict} by {person}.")
    if verdict == "approved" and len(ran := ApprovedRuns(approvals).of(proposal)) >= runs:
        again = f"another one needs `dynammo-site approve --yes {proposal.id[:16]} --runs {len(ran) + 1}`"
        console.say(f"It allows no other run: {len(ran)} of {runs} had answers of this site ({ran[-1]}); {again}")


def _found(known: Sequence[Proposal], hash_: str) -> Proposal:
    """Return the one proposal whose hash begins so."""
    found = [proposal for proposal in known if len(hash_) >= SHORTEST and proposal.id.startswith(hash_.lower())]
    if len(found) != 1:
        meant = [one for one in known if len(hash_) >= SHORTEST and one.experiment_hash.startswith(hash_.lower())]
        hint = f"; it is the hash of the experiment in the proposal {meant[-1].id[:16]}" if meant else ""
        raise ConfigError(
            f"{len(found) or 'no'} proposals have a hash that begins with {hash_!r}{hint}",
            accepted=", ".join(proposal.id[:16] for proposal in known) or "there are no proposals yet",
            remedy=f"Give at least {SHORTEST} digits of one of them",
        )
    return found[0]


def _state(approvals: Approvals, proposal: Proposal) -> str:
    from client.consent.approved_runs import ApprovedRuns

    decision = approvals.state(proposal)
    if decision is None:
        return "waiting"
    covered = ""
    if count := approvals.covered(proposal):
        covered = f" for {count} run{'s' * (count > 1)} ({len(ApprovedRuns(approvals).of(proposal))} answered)"
    return f"{decision['verdict']}{covered} by {decision.get('by')}"
