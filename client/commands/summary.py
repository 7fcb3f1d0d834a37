"""Describe an experiment to the person who approves it: what it does, what leaves, and what is new."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from typing import Any

import yaml

from client.consent.approvals import Approvals, Proposal
from client.consent.approved_runs import ApprovedRuns
from client.consent.labels import misspelt_labels
from client.consent.policy import load_policy, promised_epsilon, training_rounds, violations
from client.consent.settings import SiteSettings
from client.state.privacy_budget import PrivacyBudget
from dynammo_core.code_identity import code_hash, plugins_of
from dynammo_core.experiment import Experiment
from dynammo_core.models.description import origin_of, title_of
from dynammo_core.support.errors import DataError
from dynammo_core.wire.protocol import numbers_of


def forbidden(site: SiteSettings, proposal: Proposal) -> list[str]:
    """List what the site's policy forbids in a proposal."""
    return violations(load_policy(site.policy), proposal.config)


def last_approved(approvals: Approvals, proposal: Proposal) -> Proposal | None:
    """Return the approved proposal to compare with: the last of the same name, else of any name."""
    others = [other for other in approvals.approved() if other.id != proposal.id]
    named = [other for other in others if other.plain["name"] == proposal.plain["name"]]
    return next(reversed(named or others), None)


def difference(before: Proposal | None, now: Proposal) -> list[str]:
    """Return a unified diff of code hash and configuration; all of it, if nothing was approved before."""
    old, new = ([] if one is None else _lines(one) for one in (before, now))
    name = f"approved, {before.id[:16]}" if before else "nothing approved yet"
    return list(difflib.unified_diff(old, new, name, f"proposed, {now.id[:16]}", lineterm="", n=2))


def same_sums(approvals: Approvals, proposal: Proposal) -> list[Proposal]:
    """List approved experiments that sum the same: two sums over different sites can reveal what one site sent."""
    mine = _summed(proposal)
    others = [other for other in approvals.approved() if other.experiment_hash != proposal.experiment_hash]
    return [other for other in others if mine is not None and _summed(other) == mine]


def _summed(proposal: Proposal) -> dict[str, Any] | None:
    """Return what an experiment sums, without its name and sites; None without secure aggregation."""
    plain = proposal.plain
    if not plain["federation"].get("secure_aggregation"):
        return None
    return {name: plain[name] for name in ("data", "tasks", "method", "backbone") if name in plain}


def fields(site: SiteSettings, approvals: Approvals, proposal: Proposal) -> dict[str, Any]:
    """Return the page's content as plain data: tasks and stages, and what leaves in them."""
    decision = approvals.state(proposal)
    known: dict[str, Any] = {"proposal": proposal.id, "experiment": proposal.experiment_hash, "code": proposal.code}
    known |= {"name": proposal.plain["name"], "run": proposal.run, "first_seen": proposal.first_seen}
    known |= {"installed_code": proposal.code == code_hash(proposal.config)}
    known |= {"plugins": list(map(str, plugins_of(proposal.config)))}
    known |= {"state": decision["verdict"] if decision else "waiting"}
    experiment = Experiment(proposal.config)
    before = approvals.approved()
    classes = {name for other in before for name in other.plain["data"]["classes"] or ()}
    sites = {name for other in before for name in other.plain["federation"]["site_names"] or ()}
    names = experiment.class_names
    last = len(experiment.stream) - 1
    budget = PrivacyBudget(site.memory.folder, load_policy(site.policy))
    return known | {
        "method": proposal.config.method.name,
        "sites": list(proposal.config.federation.site_names or ()),
        "site_keys": list(proposal.config.federation.site_keys or ()),
        "tasks": [[names[label] for label in task] for task in experiment.stream.tasks],
        "new_sites": [name for name in proposal.config.federation.site_names or () if name not in sites],
        "new_classes": [name for name in names if name not in classes],
        "training_rounds": training_rounds(experiment),
        "backbone": f"{title_of(proposal.config.backbone)}, {_origin(site, proposal)}"
        + "".join(f"; from task {n.task} on {title_of(n)}, {origin_of(n)}" for n in proposal.config.backbone.changes),
        "stages": [
            {
                "stage": stage.name,
                "action": stage.action.value,
                "rounds": stage.rounds,
                "tensors": list(stage.up),
                "numbers": sorted(numbers_of(stage, experiment.protects_images)),
            }
            for stage in experiment.method.all_stages(last)
        ],
        "sums_come_down": bool(experiment.method.evaluation().tables),
        "privacy": proposal.plain.get("privacy"),
        "epsilon": epsilon if (epsilon := promised_epsilon(proposal.config)) < float("inf") else None,
        "spent": budget.words(),
        "epsilon_of_all_runs_after": budget.after(experiment),
        "fewest": load_policy(site.policy).fewest.words(),
        "forbidden": forbidden(site, proposal),
        "runs": ApprovedRuns(approvals).of(proposal),
        "misspelt": _misspelt(site, proposal),
        "same_sums": [other.id for other in same_sums(approvals, proposal)],
    }


def _origin(site: SiteSettings, proposal: Proposal) -> str:
    own = {"weights": str(site.weights)} if site.weights else {}
    return origin_of(proposal.config.backbone.model_copy(update=own))


def _misspelt(site: SiteSettings, proposal: Proposal) -> list[str]:
    """Return what is wrong with the site's labels; nothing if they cannot be read, which `doctor` reports."""
    try:
        return misspelt_labels(site, proposal.config)
    except DataError:
        return []


def page(site: SiteSettings, approvals: Approvals, proposal: Proposal) -> Iterator[str]:
    """Yield the lines that a person reads."""
    shown = fields(site, approvals, proposal)
    yield f"{shown['name']}  {shown['proposal']}"
    yield f"  state        {shown['state']}, first seen {shown['first_seen']}" + (
        f" in {proposal.run}" if proposal.run else ""
    )
    yield f"  experiment   {shown['experiment']}"
    yield f"  code         {shown['code']}"
    if not shown["installed_code"]:
        own = code_hash(proposal.config)[:16]
        yield f"               NOT the code installed here ({own}), which made this page"
    for plugin in shown["plugins"]:
        yield f"  plug-in      {plugin}"
    yield f"  method       {shown['method']}, {shown['training_rounds']} rounds of training in all"
    yield f"  backbone     {shown['backbone']}"
    yield "               who makes these weights can make sums reveal images: approve only weights that you trust"
    yield f"  sites        {_marked(shown['sites'], shown['new_sites'])}"
    for name, key in zip(shown["sites"], shown["site_keys"], strict=False):
        yield f"  key          {key} of {name}"
    for number, task in enumerate(shown["tasks"], start=1):
        yield f"  task {number:<7} {_marked(task, shown['new_classes'])}"
    for stage in shown["stages"]:
        yield f"  {stage['stage']:<12} {stage['action']}, {stage['rounds']} rounds per task; what leaves:"
        yield f"               tensors: {', '.join(stage['tensors']) or 'none'}"
        yield f"               numbers: {', '.join(stage['numbers'])}"
    if shown["sums_come_down"]:
        yield "  comes down   to every site: the sums over all sites; who knows those of all others but one can compute"
        yield "               that one's, and what one site alone has images of shows that site's"
    yield f"  takes part   with {shown['fewest']}"
    if shown["epsilon"] is None:
        yield "  privacy      no differential privacy"
    else:
        yield f"  privacy      {yaml.safe_dump(shown['privacy'], default_flow_style=True, width=10**6).strip()}"
        yield f"  all runs     {shown['spent']}"
    if (after := shown["epsilon_of_all_runs_after"]) is not None:
        yield f"               a complete run of this experiment would raise it to {after:.3g}"
    before = last_approved(approvals, proposal)
    yield (
        "Changes since the last approved experiment:"
        if before
        else "Nothing was approved before. The whole experiment:"
    )
    yield from (f"  {line}" for line in difference(before, proposal) or ["none"])
    if shown["runs"]:
        yield f"RUNS answered so far, under any version of the code: {', '.join(shown['runs'])}"
    for other in shown["same_sums"]:
        yield f"WARNING: {other[:16]} asks for the same sums. If the sites differ, both can reveal what one site sent"
    for sentence in shown["misspelt"]:
        yield f"WARNING: {sentence}"
    for sentence in shown["forbidden"]:
        yield f"FORBIDDEN by {site.policy}: {sentence}"


def _marked(names: Iterable[str], new: Iterable[str]) -> str:
    unknown = set(new)
    return ", ".join(f"{name} (NEW)" if name in unknown else name for name in names) or "none named"


def _lines(proposal: Proposal) -> list[str]:
    # Without allow_unicode, control characters for a terminal are escaped.
    return [f"code: {proposal.code}", *yaml.safe_dump(proposal.plain, sort_keys=True, width=10**6).splitlines()]
