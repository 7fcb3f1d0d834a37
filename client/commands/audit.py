"""`dynammo-site audit`: check that the audit log is complete, and print it on one page."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.filesize import decimal
from rich.table import Table

from client.consent.settings import load_site
from dynammo_core.support.errors import CheckpointError, ConfigError
from dynammo_core.support.terminal import Terminal, cell, command_line, listing, readable_errors

if TYPE_CHECKING:
    from client.consent.audit import AuditLog
    from client.consent.chained_log import Chain

audit = command_line("Check the log of what left this site, and print it on one page.")
console = Terminal(emoji=False, highlight=False)
SiteYaml = Annotated[Path, typer.Argument(metavar="SITE.YAML", help="The site's settings.")]
HERE = Path("site.yaml")
HASH = r"[0-9a-f]{16,64}"
VERDICTS = ("approved", "rejected", "revoked")
Fields = dict[str, Any]


@audit.command()
def verify(
    site_yaml: SiteYaml = HERE,
    expect: Annotated[
        str | None, typer.Option(metavar="HASH", help="Require a line with this hash, which you wrote down earlier.")
    ] = None,
) -> None:
    """Check that no line was edited, removed or moved; exit with code 1 if one was."""
    from client.consent.audit import AuditLog

    with readable_errors():
        if expect is not None and not re.fullmatch(HASH, expect):
            raise ConfigError(
                f"--expect {expect!r} is not a hash", accepted="64 hexadecimal digits, or the first 16 of them"
            )
        log = AuditLog(load_site(site_yaml).audit)
        chain = log.read()
        places = [line.number for line in chain.whole if expect is not None and line.link.startswith(expect)]
        if expect is not None and not places:
            raise CheckpointError(
                f"the audit log {log.path} has no line with the hash {expect}",
                remedy="After you wrote this hash down, lines were cut off the end, or the log was rewritten",
            )
        console.say(f"{log.path}: {chain.lines} lines, all {'complete ones ' * bool(chain.cut_off)}unchanged.")
        for place in places:
            console.say(f"The expected hash is in line {place}: up to there nothing is missing.")
        _say_cut_off(chain)
        console.say(f"Lines: {chain.lines}")
        console.say(f"Hash of the last complete line: {chain.last_link or 'none'}")
        console.say("The file alone cannot show that lines are missing at its end. Write both down elsewhere, and")
        console.say("pass the hash as --expect next time.")
        raise typer.Exit(1 if chain.open_end else 0)


@audit.command()
def report(site_yaml: SiteYaml = HERE) -> None:
    """Print what left this site: the answers, bytes, norms and numbers of each run, task and stage."""
    from client.consent.audit import AuditLog
    from client.consent.policy import load_policy
    from client.state.privacy_budget import PrivacyBudget

    with readable_errors():
        site = load_site(site_yaml)
        log = AuditLog(site.audit)
        chain = log.read()
        entries = [entry.fields for entry in chain.entries]
        console.say(f"What left {site.site}: {chain.lines} lines in {log.path}{_since(entries)}")
        _say_cut_off(chain)
        _report(entries, log)
        console.say(f"Privacy: {PrivacyBudget(site.memory.folder, load_policy(site.policy)).words()}")


def _since(entries: list[Fields]) -> str:
    return f", {entries[0].get('time')} to {entries[-1].get('time')}" if entries else ""


def _report(entries: list[Fields], log: AuditLog) -> None:
    try:
        for run, answers in _grouped(_of(entries, "answered"), lambda entry: entry["run"]).items():
            console.print(run_table(run, answers))
            for stage, own in _grouped(answers, lambda entry: _place(entry)[1]).items():
                numbers = ", ".join(sorted({name for entry in own for name in entry["numbers"]}))
                console.say(f"numbers of {stage}: {numbers or 'none'}")
        for verdict in VERDICTS:
            for decided in _of(entries, verdict):
                what = f"{decided['name']} ({decided['proposal'][:16]}), code {decided['code'][:12]}"
                console.say(f"{decided['time']} {verdict} by {decided['by']}: {what}")
        for told in _of(entries, "counted"):
            console.say(f"{told['time']} told numbers of images and patients of {len(told['classes'])} classes")
        for announced in _of(entries, "announced"):
            bands = ", ".join(f"{name}: {band}+" for name, band in announced["classes"].items())
            console.say(f"{announced['time']} announced classes and bands: {bands or 'none'}")
        for memory in {(entry["run"], entry["task"]): entry for entry in _of(entries, "memory")}.values():
            held = ", ".join(f"{name}: {count}" for name, count in memory["exemplars"].items())
            console.say(
                f"{memory['time']} memory of {memory['run']} after task {memory['task'] + 1}: {held or 'empty'}"
            )
        for purge in _of(entries, "purged"):
            patients = f"{purge['patients']} patients, " if "patients" in purge else ""
            counts = f"{patients}{purge['records']} records, {purge['exemplars']} exemplars"
            console.say(f"{purge['time']} purged by {purge['selection']}: {counts}")
        refusals = Counter((entry["asked"], entry["code"], entry["class"]) for entry in _of(entries, "refused"))
        for (asked, code, name), count in refusals.items():
            console.say(
                f"refused {count} times: {asked or 'a message'}, error {code} {name}; the audit log holds the texts"
            )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"the audit log {log.path} holds lines that a site cannot have written ({type(error).__name__}: {error})",
            remedy="Somebody rewrote it with matching hashes, or a newer version of dynammo-site wrote it",
        ) from error


def run_table(run: str, answers: list[Fields]) -> Table:
    """Return a table of what left in one run: a row per task and stage, from the log's entries."""
    size = sum(entry["bytes"] for entry in answers)
    numeric = ("answers", "abs-\ntained", "tensors", "bytes", "least\nnorm", "largest\nnorm", "samples")
    title = f"{run}: {len(answers)} answers, {size:,} bytes of tensors"
    table = listing("step", *numeric, right=numeric, title=title)
    for (task, stage), own in _grouped(answers, _place).items():
        norms = [entry["norm"] for entry in own if entry["tensors"]]
        table.add_row(
            cell(f"task {task + 1} {stage}"),
            str(len(own)),
            str(sum(entry["abstained"] for entry in own)),
            str(sum(group["count"] for entry in own for group in entry["tensors"].values())),
            decimal(sum(entry["bytes"] for entry in own)),
            f"{min(norms):.3g}" if norms else "",
            f"{max(norms):.3g}" if norms else "",
            str(max(sum(entry["class_counts"] or ()) for entry in own)),
        )
    return table


def _place(entry: Fields) -> tuple[int, str]:
    """Return task and stage, with the exchange under secure aggregation."""
    return entry["task"], " ".join(filter(None, (entry["stage"], entry.get("exchange"))))


def _of(entries: Iterable[Fields], event: str) -> list[Fields]:
    return [entry for entry in entries if entry.get("event") == event]


def _grouped(entries: Iterable[Fields], key: Callable[[Fields], Any]) -> dict[Any, list[Fields]]:
    groups: dict[Any, list[Fields]] = {}
    for entry in entries:
        groups.setdefault(key(entry), []).append(entry)
    return groups


def _say_cut_off(chain: Chain) -> None:
    for number in chain.cut_off:
        console.say(f"Line {number} is incomplete: a crash interrupted its writing, so what it records was not sent.")
    if chain.open_end:
        console.say("The site's next line will close it. If you know of no crash, somebody truncated the file.")
