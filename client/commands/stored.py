"""What lies in a site's memory folder: exemplars, notes of sums, and which records belong to a patient."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from client.consent.settings import SiteSettings
from client.state.run_folders import runs_folder
from dynammo_core.support.errors import ConfigError, DynammoError, unknown_name

if TYPE_CHECKING:
    from client.state.sums_note import SumsNote
    from client.state.withdrawal import WithdrawalLedger
    from dynammo_core.memory.store import MemoryStore, ReplayMemory


@dataclass(frozen=True)
class Exemplar:
    """What is known of an exemplar but its pixels. Its class goes by the index where no name is stored."""

    record_id: str
    class_name: str
    run: str
    task: int
    taken: date
    patient: str


@dataclass(frozen=True)
class Stored:
    """The memory of one run, as it lies on the disk."""

    run: str
    store: MemoryStore
    memory: ReplayMemory
    encrypted: bool

    def exemplars(self) -> Iterator[Exemplar]:
        """Yield all of them, in the order of the memory; tasks count from 1 for those who read it."""
        memory, names = self.memory, self.memory.class_names
        labels = memory.samples.labels.tolist()
        for label, record, patient, taken in zip(
            labels, memory.record_ids, memory.patient_ids, memory.taken, strict=True
        ):
            name = names[label] if label < len(names) else str(label)
            yield Exemplar(record, name, self.run, taken.task + 1, taken.day, patient)


def memory_paths(site: SiteSettings) -> list[Path]:
    """List the files of all memories, sorted."""
    from dynammo_core.memory.store import MEMORY_FILE

    return sorted(runs_folder(site.memory.folder).glob(f"*/{MEMORY_FILE}"))


def open_memory(path: Path, site: SiteSettings) -> Stored:
    """Open a memory, plain or encrypted: unlike a run, which takes nothing plain where there is a key, people may look.

    Raises:
        MemoryStoreError: it cannot be read; ConfigError: its key cannot be.
    """
    from dynammo_core.memory.store import MemoryStore

    key = _key_of(path, site)
    store = MemoryStore(path.parent, run=path.parent.name, site=site.site, key=key)
    return Stored(path.parent.name, store, store.load(), key is not None)


def open_all(site: SiteSettings) -> list[Stored]:
    """Open the memories of all runs.

    Raises:
        DynammoError: as `open_memory`, for any of them.
    """
    return [open_memory(path, site) for path in memory_paths(site)]


def exemplars_in(stored: Iterable[Stored]) -> list[Exemplar]:
    """List the exemplars of several memories."""
    return [exemplar for item in stored for exemplar in item.exemplars()]


def fitting_records(stored: list[Stored], class_name: str | None, before: date | None, run: str | None) -> set[str]:
    """Find the records of which an exemplar fits all that is given.

    Raises:
        ConfigError: no memory holds that class, or no run has that name.
    """
    held = exemplars_in(stored)
    runs, classes = {item.run for item in stored}, {exemplar.class_name for exemplar in held}
    if run is not None and run not in runs:
        raise ConfigError(unknown_name("run", run, runs), accepted=", ".join(sorted(runs)) or "none: no memory is here")
    if class_name is not None and class_name not in classes:
        accepted = ", ".join(sorted(classes)) or "none: no exemplar is here"
        raise ConfigError(unknown_name("class", class_name, classes), accepted=accepted)
    return {
        exemplar.record_id
        for exemplar in held
        if class_name in (None, exemplar.class_name)
        and run in (None, exemplar.run)
        and (before is None or exemplar.taken < before)
    }


def records_of(patients: Collection[str], site: SiteSettings, stored: Iterable[Stored]) -> dict[str, set[str]]:
    """Find all records of patients: in the site's data set as it is now, in its memories, and in its notes of sums.

    Returns:
        The records by patient, without patients of whom there is none.

    Raises:
        ConfigError: the data set cannot be opened, so that nobody knows.
        DynammoError: a note cannot be read.
    """
    from dynammo_core.configuration.settings import DataSettings
    from dynammo_core.data.index.opening import open_own

    try:
        dataset = open_own(DataSettings(dataset=site.data.dataset, root=site.data.root), seed=0)
    except DynammoError as error:
        raise ConfigError(
            f"nothing was changed, for it cannot be found out which records belong to a patient: {error}",
            remedy="Correct the data set, or name the records by --record-id",
        ) from error
    pairs = [
        pair
        for split in (dataset.train, dataset.test)
        for pair in zip(split.record_ids, split.patient_ids, strict=True)
    ]
    pairs += [(exemplar.record_id, exemplar.patient) for exemplar in exemplars_in(stored)]
    for path in note_paths(site):
        pairs += [(image.record_id, image.patient) for image, _ in _open_note(path, site).sent()]
    found: dict[str, set[str]] = {}
    for record, patient in pairs:
        if patient in patients:
            found.setdefault(patient, set()).add(record)
    return found


def note_paths(site: SiteSettings) -> list[Path]:
    """List the notes of what sums contain, of all runs, sorted."""
    from client.state.sums_note import NOTE_FILE

    return sorted(runs_folder(site.memory.folder).glob(f"*/{NOTE_FILE}"))


def sums_words(path: Path, site: SiteSettings, ledger: WithdrawalLedger) -> str:
    """Say how many images of this site a run's sums contain, and how many of them are withdrawn."""
    sent = _open_note(path, site).sent()
    images = [image for image, _ in sent]
    flags = ledger.is_withdrawn([image.record_id for image in images], [image.patient for image in images])
    owed = sum(count for count, flag in zip(sent.values(), flags.tolist(), strict=True) if flag)
    summary = f"{path.parent.name}: the server's sums contain {sent.total()} images of this site"
    return f"{summary}; {owed} of withdrawn records, until the operator's `dynammo-server forget`" if owed else summary


def _open_note(path: Path, site: SiteSettings) -> SumsNote:
    from client.state.sums_note import SumsNote

    return SumsNote(path.parent, run=path.parent.name, site=site.site, key=_key_of(path, site))


def _key_of(path: Path, site: SiteSettings) -> bytes | None:
    """Return the site's key if a sealed file is encrypted, and None if it is plain."""
    from dynammo_core.memory.encryption import load_key
    from dynammo_core.memory.sealed_file import read_header

    return load_key(site.memory.key) if read_header(path).key is not None and site.memory.key else None
