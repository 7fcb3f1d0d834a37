"""`dynammo-site memory`: what this site remembers, and taking records out of it. Nothing here leaves the site."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass
from datetime import date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer
from rich.markup import escape
from rich.table import Table

from client.consent.settings import SiteSettings, load_site
from client.state.run_folders import IMAGES, runs_folder
from dynammo_core.support.csv_text import csv_lines, from_cell
from dynammo_core.support.errors import CheckpointError, ConfigError, MemoryStoreError, unknown_name
from dynammo_core.support.files import write_atomically
from dynammo_core.support.terminal import Terminal, cell, command_line, printable_lines, readable_errors

if TYPE_CHECKING:
    from client.state.withdrawal import WithdrawalLedger
    from dynammo_core.memory.store import MemoryStore, ReplayMemory

memory = command_line("Look into this site's replay memory, and take records out of it.")
console = Terminal(emoji=False)
SiteYaml = Annotated[Path, typer.Argument(metavar="SITE.YAML", help="The site's settings.")]
HERE = Path("site.yaml")


@dataclass(frozen=True)
class Exemplar:
    """What is known of an exemplar but its pixels. Its class goes by the index where no name is stored."""

    record_id: str
    class_name: str
    run: str
    task: int
    taken: date


@dataclass(frozen=True)
class Stored:
    """The memory of one run, as it lies on the disk."""

    run: str
    store: MemoryStore
    memory: ReplayMemory
    encrypted: bool

    def exemplars(self) -> Iterator[Exemplar]:
        """All of them, in the order of the memory; tasks count from 1 for those who read it."""
        samples, names = self.memory.samples, self.memory.class_names
        for label, record, taken in zip(samples.labels.tolist(), samples.record_ids, self.memory.taken, strict=True):
            name = names[label] if label < len(names) else str(label)
            yield Exemplar(record, name, self.run, taken.task + 1, taken.day)


@memory.command()
def status(site_yaml: SiteYaml = HERE) -> None:
    """Show what is stored: for each run and class the exemplars, their tasks, size and age; and what sums contain."""
    from client.state.withdrawal import WithdrawalLedger

    with readable_errors():
        site = load_site(site_yaml)
        paths, broken = _paths(site), 0
        for path in paths:
            try:
                console.print(_status_table(_open(path, site)))
            except MemoryStoreError as error:
                broken += 1
                console.print("[red]wrong[/] ", escape(str(error)), soft_wrap=True, highlight=False)
        ledger = WithdrawalLedger(site.memory.folder)
        for path in _notes(site):
            try:
                console.say(_sums_words(path, site, ledger))
            except MemoryStoreError as error:
                broken += 1
                console.print("[red]wrong[/] ", escape(str(error)), soft_wrap=True, highlight=False)
        withdrawn = len(ledger)
        summary = f"{len(paths)} memories in {site.memory.folder}, {withdrawn} withdrawn records"
        console.say(summary)
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
    """List all exemplars as CSV: record, class, run, task, day. The list names records: it stays at the site."""
    with readable_errors():
        exemplars = _exemplars(_open_all(load_site(site_yaml)))
        text = csv_lines([("record_id", "class", "run", "task", "taken"), *map(astuple, exemplars)])
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

    Name records, or a class, a day or both: then the records go of which an exemplar fits all that is named.
    """
    from client.consent.audit import AuditLog
    from client.state.feature_files import discard_features
    from client.state.known_images import TrainedImages, hash_cache
    from client.state.withdrawal import WithdrawalLedger
    from dynammo_core.data.decoded.image_cache import discard_images

    with readable_errors():
        if bool(record_id) == bool(class_ or before) or (record_id and run):
            raise ConfigError(
                "purge is not told which records",
                accepted="--record-id, once or more; or --class, --before or both, which --run narrows down",
            )
        site = load_site(site_yaml)
        stored = _open_all(site)
        # As given, and as meant by who copies from `export-index`: withdrawn is withdrawn, under either name.
        named = {name for name_or_cell in record_id or () for name in (name_or_cell, from_cell(name_or_cell))}
        ids = named or set(_fitting(stored, class_, before and before.date(), run))
        if not ids:
            console.print("No exemplar fits. Nothing was changed.")
            return
        console.print(_purge_table(stored, ids))
        if not yes:
            typer.confirm(f"Remove them for good, and never choose these {len(ids)} records again?", abort=True)
        ledger = WithdrawalLedger(site.memory.folder)
        reason = "record" if record_id else " and ".join(["class"] * bool(class_) + ["date"] * bool(before))
        audit = AuditLog(site.audit)
        with _open_log(site.log) as log:
            audit.check_writable()
            # First the ledger: whatever stops the rest, nobody uses the records again, and a second purge removes them.
            ledger.withdraw(sorted(ids), f"purge by {reason}", date.today())
            removed = sum(ledger.purge(item.store) for item in stored)
            TrainedImages.of_site(site.memory, site.site).forget(sorted(ids))
            hash_cache(site.memory).discard()
            discard_features(runs_folder(site.memory.folder))
            discard_images(site.memory.folder / IMAGES)
            audit.purged(len(ids), removed, reason)
            summary = f"purge by {reason}: {removed} exemplars of {len(ids)} records removed"
            time = datetime.now().astimezone().isoformat(timespec="seconds")
            hashes = " ".join(digest[:12] for digest in ledger.hashes(sorted(ids)))
            log.write(f"{time} INFO memory {summary}: {hashes}\n")
        console.print(f"[green]done[/]  {summary}, and entered in {escape(str(ledger.path))}", soft_wrap=True)
        console.print("Backups of the memory, and models that have learned from these records, are as they were.")
        for path in _notes(site):
            console.say(_sums_words(path, site, ledger))


def _notes(site: SiteSettings) -> list[Path]:
    from client.state.sums_note import NOTE_FILE

    return sorted(runs_folder(site.memory.folder).glob(f"*/{NOTE_FILE}"))


def _spent_words(site: SiteSettings) -> str:
    from client.consent.policy import load_policy
    from client.state.privacy_budget import PrivacyBudget

    return PrivacyBudget(site.memory.folder, load_policy(site.policy)).words()


def _sums_words(path: Path, site: SiteSettings, ledger: WithdrawalLedger) -> str:
    """How many images of this site a run's sums contain, and how many of them are withdrawn."""
    from client.state.sums_note import SumsNote
    from dynammo_core.memory.encryption import load_key
    from dynammo_core.memory.sealed_file import read_header

    key = load_key(site.memory.key) if read_header(path).key is not None and site.memory.key else None
    run = path.parent.name
    sent = SumsNote(path.parent, run=run, site=site.site, key=key).sent()
    flags = ledger.is_withdrawn([image.record_id for image in sent])
    owed = sum(count for count, flag in zip(sent.values(), flags.tolist(), strict=True) if flag)
    summary = f"{run}: the server's sums contain {sent.total()} images of this site"
    return f"{summary}; {owed} of withdrawn records, until the operator's `dynammo-server forget`" if owed else summary


def _paths(site: SiteSettings) -> list[Path]:
    from dynammo_core.memory.store import MEMORY_FILE

    return sorted(runs_folder(site.memory.folder).glob(f"*/{MEMORY_FILE}"))


def _open(path: Path, site: SiteSettings) -> Stored:
    """A memory, plain or encrypted: unlike a run, which takes nothing plain where there is a key, people may look."""
    from dynammo_core.memory.encryption import load_key
    from dynammo_core.memory.sealed_file import read_header
    from dynammo_core.memory.store import MemoryStore

    encrypted = read_header(path).key is not None
    key = load_key(site.memory.key) if encrypted and site.memory.key else None
    store = MemoryStore(path.parent, run=path.parent.name, site=site.site, key=key)
    return Stored(path.parent.name, store, store.load(), encrypted)


def _open_all(site: SiteSettings) -> list[Stored]:
    return [_open(path, site) for path in _paths(site)]


def _exemplars(stored: Iterable[Stored]) -> list[Exemplar]:
    return [exemplar for item in stored for exemplar in item.exemplars()]


def _fitting(stored: list[Stored], class_name: str | None, before: date | None, run: str | None) -> list[str]:
    """The records of which an exemplar fits all that is given."""
    held = _exemplars(stored)
    runs, classes = {item.run for item in stored}, {exemplar.class_name for exemplar in held}
    if run is not None and run not in runs:
        raise ConfigError(unknown_name("run", run, runs), accepted=", ".join(sorted(runs)) or "none: no memory is here")
    if class_name is not None and class_name not in classes:
        accepted = ", ".join(sorted(classes)) or "none: no exemplar is here"
        raise ConfigError(unknown_name("class", class_name, classes), accepted=accepted)
    return [
        exemplar.record_id
        for exemplar in held
        if class_name in (None, exemplar.class_name)
        and run in (None, exemplar.run)
        and (before is None or exemplar.taken < before)
    ]


def _status_table(item: Stored) -> Table:
    held, samples = list(item.exemplars()), item.memory.samples
    image_bytes = samples.images[0].nbytes if held else 0
    table = Table(
        title=cell(f"{item.run}: after task {item.memory.task + 1}, {item.store.path.stat().st_size:,} bytes, ").append(
            *(("encrypted",) if item.encrypted else ("not encrypted", "yellow"))
        ),
        title_justify="left",
    )
    for column in ("class", "exemplars", "task", "bytes", "oldest"):
        table.add_column(column, justify="left" if column == "class" else "right")
    for name in dict.fromkeys(exemplar.class_name for exemplar in held):
        own = [exemplar for exemplar in held if exemplar.class_name == name]
        tasks = ", ".join(map(str, sorted({exemplar.task for exemplar in own})))
        oldest = min(exemplar.taken for exemplar in own)
        table.add_row(cell(name), str(len(own)), tasks, f"{len(own) * image_bytes:,}", oldest.isoformat())
    return table


def _purge_table(stored: list[Stored], ids: set[str]) -> Table:
    affected = [exemplar for exemplar in _exemplars(stored) if exemplar.record_id in ids]
    table = Table(title=f"{len(affected)} exemplars of {len(ids)} records", title_justify="left")
    for column in ("record", "class", "run", "task", "taken"):
        table.add_column(column, overflow="fold")
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
