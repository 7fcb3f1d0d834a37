"""`dynammo-site approve`: what waits for a person, what it would do and change, and the person's decision."""

from __future__ import annotations

import getpass
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from client.consent.settings import SiteSettings, load_site
from dynammo_core.support.errors import CheckpointError, ConfigError
from dynammo_core.support.terminal import Terminal, readable_errors

if TYPE_CHECKING:
    from client.consent.approvals import Approvals, Proposal, Verdict

console = Terminal(highlight=False, emoji=False)
SHORTEST = 8


def approve(
    site_yaml: Annotated[Path, typer.Argument(metavar="SITE.YAML", help="The site's settings.")] = Path("site.yaml"),
    config: Annotated[
        Path | None,
        typer.Option(metavar="CONFIG", help="Approve in advance: the experiment's YAML, as the operator sent it."),
    ] = None,
    yes: Annotated[
        str | None, typer.Option(metavar="HASH", help="Approve what has this hash, or one that begins so.")
    ] = None,
    runs: Annotated[
        int, typer.Option(min=1, help="How many runs of it an approval covers, those that were included.")
    ] = 1,
    reject: Annotated[str | None, typer.Option(metavar="HASH", help="Reject it: it waits no more.")] = None,
    revoke: Annotated[str | None, typer.Option(metavar="HASH", help="Take an approval back.")] = None,
    all_: Annotated[bool, typer.Option("--list", help="List all, with what was decided; ask nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="All that is shown, as JSON; ask nothing.")] = False,
    by: Annotated[str | None, typer.Option(help="Who decides.", show_default="the account")] = None,
) -> None:
    """Show what waits to run on this site's images, what it would do and change, and approve it or not."""
    with readable_errors():
        from client.consent.approvals import Approvals, Proposal
        from client.consent.audit import AuditLog
        from client.consent.summary import fields
        from dynammo_core.configuration.config import load_config

        site = load_site(site_yaml)
        approvals = Approvals(site.approvals)
        contradictions = approvals.contradictions(AuditLog(site.audit))
        known = [Proposal.of(load_config(config))] if config else approvals.proposals()
        given = [(hash_, verdict) for verdict, hash_ in _verdicts(yes, reject, revoke).items() if hash_ is not None]
        if len(given) > 1:
            raise ConfigError("more than one decision is given", accepted="one of --yes, --reject, --revoke")
        if given:
            ((hash_, verdict),) = given
            proposal = _found(known, hash_)
            _decide(site, approvals, proposal, verdict, by or getpass.getuser(), runs)
            return
        chosen = known if all_ else [one for one in known if approvals.state(one) is None]
        if as_json:
            typer.echo(json.dumps([fields(site, approvals, proposal) for proposal in chosen], indent=2))
        elif all_:
            for proposal in chosen:
                console.say(f"{proposal.id[:16]}  {_state(approvals, proposal):<40} {proposal.plain['name']}")
        else:
            _ask(site, approvals, chosen, by or getpass.getuser(), runs)
        if contradictions:
            raise CheckpointError(
                f"the decisions in {site.approvals} are not those of {site.audit}: {'; '.join(contradictions)}",
                remedy="A crash in between, or somebody cut one of them: decide on each anew",
            )


def _verdicts(yes: str | None, reject: str | None, revoke: str | None) -> dict[Verdict, str | None]:
    return {"approved": yes, "rejected": reject, "revoked": revoke}


def _ask(site: SiteSettings, approvals: Approvals, waiting: Sequence[Proposal], person: str, runs: int) -> None:
    """Show one proposal after the other, and ask about each that the policy does not forbid."""
    from client.consent.summary import forbidden, page

    answers: dict[str, Verdict | None] = {"approve": "approved", "reject": "rejected", "later": None}
    if not waiting:
        console.say("Nothing waits for an approval.")
    for proposal in waiting:
        for line in page(site, approvals, proposal):
            console.say(line)
        if forbidden(site, proposal):
            continue
        answer = ""
        while answer not in answers:
            answer = typer.prompt(f"{', '.join(answers)}?", default="later")
        if verdict := answers[answer]:
            _decide(site, approvals, proposal, verdict, person, runs)


def _decide(
    site: SiteSettings, approvals: Approvals, proposal: Proposal, verdict: Verdict, person: str, runs: int
) -> None:
    from client.consent.admission import approve_proposal
    from client.consent.audit import AuditLog

    if verdict == "approved":
        approve_proposal(site, proposal, person, runs)
    else:
        approvals.decide(proposal, verdict, person, AuditLog(site.audit))
    console.say(f"{proposal.id[:16]} ({proposal.plain['name']}) is {verdict} by {person}.")


def _found(known: Sequence[Proposal], hash_: str) -> Proposal:
    """The one proposal that a person means."""
    found = [proposal for proposal in known if len(hash_) >= SHORTEST and proposal.id.startswith(hash_.lower())]
    if len(found) != 1:
        raise ConfigError(
            f"{len(found)} proposals have a hash that begins with {hash_!r}",
            accepted=", ".join(proposal.id[:16] for proposal in known) or "none: nothing was proposed",
            remedy=f"Give {SHORTEST} digits or more of one of them",
        )
    return found[0]


def _state(approvals: Approvals, proposal: Proposal) -> str:
    decision = approvals.state(proposal)
    if decision is None:
        return "waiting"
    covered = f" for {count} run{'s' * (count > 1)}" if (count := approvals.covered(proposal)) else ""
    return f"{decision['verdict']}{covered} by {decision.get('by')}"
