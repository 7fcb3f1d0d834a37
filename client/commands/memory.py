"""`dynammo-site memory`: what this site remembers, and taking records out of it. Nothing here leaves the site."""

from __future__ import annotations

import os
import sys
from dataclasses import astuple
from datetime import date, datetime
from pathlib import Path
from typing import Annotated, TextIO

import typer
from rich.markup import escape
from rich.table import Table

from client.commands.stored import (
    Stored,
    exemplars_in,
    fitting_records,
    memory_paths,
    note_paths,
    open_all,
    open_memory,
    records_of,
    sums_words,
)
from client.consent.settings import SiteSettings, load_site
from client.state.run_folders import IMAGES, runs_folder
from dynammo_core.support.csv_text import csv_lines, from_cell
from dynammo_core.support.errors import CheckpointError, ConfigError, MemoryStoreError
from dynammo_core.support.files import write_atomically
from dynammo_core.support.terminal import Terminal, cell, command_line, listing, printable_lines, readable_errors

memory = command_line("Look into this site's replay memory, and take records out of it.")
console = Terminal(emoji=False)
SiteYaml = Annotated[Path, typer.Argument(metavar="SITE.YAML", help="The site's settings.")]
HERE = Path("site.yaml")


@memory.command()
def status(site_yaml: SiteYaml = HERE) -> None:
    """Show what is stored: exemplars, patients, tasks, size and age for each run and class; and what sums contain."""
    from client.state.withdrawal import WithdrawalLedger

    with readable_errors():
        site = load_site(site_yaml)
        paths, broken = memory_paths(site), 0
        for path in paths:
            try:
                console.print(_status_table(open_memory(path, site)))
            except MemoryStoreError as error:
                broken += 1
                console.print("[red]wrong[/] ", escape(str(error)), soft_wrap=True, highlight=False)
        ledger = WithdrawalLedger(site.memory.folder)
        for path in note_paths(site):
            try:
                console.say(sums_words(path, site, ledger))
            except MemoryStoreError as error:
                broken += 1
                console.print("[red]wrong[/] ", escape(str(error)), soft_wrap=True, highlight=False)
        records, patients = ledger.count()
        withdrawn = f"{records} withdrawn records, {patients} ids of withdrawn patients"
        console.say(f"{len(paths)} memories in {site.memory.folder}, {withdrawn}")
        try:
            console.say(f"privacy: {_spent_words(site)}")
        except CheckpointError as error:
            broken += 1
            console.print("[red]wrong[/] ", escape(str(error)), soft_wrap=True, highlight=False)
        raise typer.Exit(1 if broken else 0)


@memory.command("export-index")
def export_index(
    site_yaml: SiteYaml = HERE,
    output: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write it there, readable by its owner alone.", show_default="print it"),
    ] = None,
) -> None:
    """List all exemplars as CSV: record, class, run, task, day, patient. It names records, so it stays at the site."""
    with readable_errors():
        exemplars = exemplars_in(open_all(load_site(site_yaml)))
        text = csv_lines([("record_id", "class", "run", "task", "taken", "patient"), *map(astuple, exemplars)])
        content = text.encode("utf-8", "backslashreplace")
        if output is None:
            typer.echo(printable_lines(text) if sys.stdout.isatty() else content, nl=False)
        else:
            write_atomically(output, content, mode=0o600)
        typer.echo("This list names records: it stays at this site.", err=True)


@memory.command()
def purge(
    site_yaml: SiteYaml = HERE,
    record_id: Annotated[
        list[str] | None,
        typer.Option(metavar="ID", help="A record whose consent was withdrawn. Repeatable.", show_default=False),
    ] = None,
    patient: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ID",
            help="A patient whose consent was withdrawn: all records go, and those to come stay out. Repeatable.",
            show_default=False,
        ),
    ] = None,
    class_: Annotated[
        str | None, typer.Option("--class", metavar="NAME", help="Exemplars of this class.", show_default=False)
    ] = None,
    before: Annotated[
        datetime | None,
        typer.Option(formats=["%Y-%m-%d"], metavar="DATE", help="Exemplars taken in before.", show_default=False),
    ] = None,
    run: Annotated[
        str | None, typer.Option(metavar="ID", help="Exemplars that this run holds.", show_default=False)
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Remove records from the memories of all runs, and never choose them again.

    Name records, patients or both; or a class, a day or both: then the records go of which an exemplar fits all that is
    named.
    """
    from client.consent.audit import AuditLog
    from client.state.feature_files import discard_features
    from client.state.known_images import TrainedImages, hash_cache
    from client.state.statistics_file import discard_heads
    from client.state.withdrawal import WithdrawalLedger
    from dynammo_core.data.decoded.image_cache import discard_images
    from dynammo_core.data.images.dicom import hash_patient

    with readable_errors():
        by_name = bool(record_id or patient)
        if by_name == bool(class_ or before) or (by_name and run):
            raise ConfigError(
                "purge is not told which records",
                accepted="--record-id or --patient, once or more; or --class, --before or both, which --run narrows "
                "down",
            )
        site = load_site(site_yaml)
        stored = open_all(site)
        ids, patients = _names(record_id), _names(patient)
        patients |= set(map(hash_patient, patients))  # DICOM images name their patient so
        if patients:
            found = records_of(patients, site, stored)
            ids |= set().union(*found.values())
            for name in patient or ():
                meant = _names([name])
                if found.keys().isdisjoint(meant | set(map(hash_patient, meant))):
                    console.say(f"warning: no record here shows the patient {name!r}; is it spelt so?")
        if not by_name:
            ids = fitting_records(stored, class_, before and before.date(), run)
        if not ids and not patients:
            console.print("No exemplar fits. Nothing was changed.")
            return
        what = f"{len(ids)} records" + (f" and all to come of {len(patient or ())} patients" if patient else "")
        console.print(_purge_table(stored, ids))
        if not yes:
            typer.confirm(f"Remove them for good, and never choose these {what} again?", abort=True)
        ledger = WithdrawalLedger(site.memory.folder)
        named = {"record": record_id, "patient": patient, "class": class_, "date": before}
        reason = " and ".join(kind for kind, given in named.items() if given)
        audit = AuditLog(site.audit)
        with _open_log(site.log) as log:
            audit.check_writable()
            # First the ledger: whatever stops the rest, nobody uses the records again, and a second purge removes them.
            ledger.withdraw(sorted(ids), f"purge by {reason}", date.today(), patients=sorted(patients))
            removed = sum(ledger.purge(item.store) for item in stored)
            TrainedImages.of_site(site.memory, site.site).forget(sorted(ids))
            hash_cache(site.memory).discard()
            discard_features(runs_folder(site.memory.folder))
            discard_heads(runs_folder(site.memory.folder))
            discard_images(site.memory.folder / IMAGES)
            audit.purged(len(ids), removed, reason, patients=len(patient or ()))
            summary = f"purge by {reason}: {removed} exemplars of {len(ids)} records removed"
            time = datetime.now().astimezone().isoformat(timespec="seconds")
            hashes = " ".join(digest[:12] for digest in ledger.hashes(sorted(ids), sorted(patients)))
            log.write(f"{time} INFO memory {summary}: {hashes}\n")
        console.print(f"[green]done[/]  {summary}, and entered in {escape(str(ledger.path))}", soft_wrap=True)
        console.print("Backups of the memory, and models that have learned from these records, are as they were.")
        for path in note_paths(site):
            console.say(sums_words(path, site, ledger))


def _names(given: list[str] | None) -> set[str]:
    """Return ids as given, and as they are meant by who copies them from `export-index`: both are withdrawn."""
    return {name for name_or_cell in given or () for name in (name_or_cell, from_cell(name_or_cell))}


def _spent_words(site: SiteSettings) -> str:
    from client.consent.policy import load_policy
    from client.state.privacy_budget import PrivacyBudget

    return PrivacyBudget(site.memory.folder, load_policy(site.policy)).words()


def _status_table(item: Stored) -> Table:
    held, samples = list(item.exemplars()), item.memory.samples
    image_bytes = samples.images[0].nbytes if held else 0
    numeric = ("exemplars", "patients", "task", "bytes", "oldest")
    table = listing("class", *numeric, right=numeric)
    stored = f"{item.run}: after task {item.memory.task + 1}, {item.store.path.stat().st_size:,} bytes, "
    table.title = cell(stored).append(*(("encrypted",) if item.encrypted else ("not encrypted", "yellow")))
    for name in dict.fromkeys(exemplar.class_name for exemplar in held):
        own = [exemplar for exemplar in held if exemplar.class_name == name]
        tasks = ", ".join(map(str, sorted({exemplar.task for exemplar in own})))
        oldest = min(exemplar.taken for exemplar in own)
        patients = len({exemplar.patient for exemplar in own})
        size = f"{len(own) * image_bytes:,}"
        table.add_row(cell(name), str(len(own)), str(patients), tasks, size, oldest.isoformat())
    return table


def _purge_table(stored: list[Stored], ids: set[str]) -> Table:
    affected = [exemplar for exemplar in exemplars_in(stored) if exemplar.record_id in ids]
    table = listing(
        *("record", "class", "run", "task", "taken", "patient"),
        fold=("record", "class", "run", "patient"),
        title=f"{len(affected)} exemplars of {len(ids)} records",
    )
    for exemplar in affected:
        table.add_row(*map(cell, astuple(exemplar)))
    for record in sorted(ids - {exemplar.record_id for exemplar in affected}):
        table.add_row(cell(record), "in no memory")
    return table


def _open_log(path: Path) -> TextIO:
    """Opened before anything is changed: what cannot be logged is not done."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "a", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"nothing was changed, for the log {path} cannot be written: {error.strerror}") from error
