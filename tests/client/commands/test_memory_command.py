"""`dynammo-site memory` on real memories: what it shows, what it takes away for good, and what it leaves alone."""

from __future__ import annotations

import base64
import csv
import json
import os
import re
from collections.abc import Callable
from datetime import date
from pathlib import Path

import pytest
import torch
from click.testing import Result
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from client.commands.memory import memory
from client.consent.audit import AuditLog
from client.state.feature_files import FeatureFiles
from client.state.statistics_file import HEAD, StatisticsFile
from client.state.sums_note import SumsNote
from client.state.withdrawal import WithdrawalLedger
from dynammo_core.data.images.dicom import hash_patient
from dynammo_core.data.samples import Samples
from dynammo_core.memory.store import MemoryStore, ReplayMemory, Taken
from dynammo_core.support.terminal import command_line

KEY = bytes(range(32))
NAMES = ("naevus", "melanoma", "wart [red]")
JANUARY, MARCH = date(2026, 1, 15), date(2026, 3, 2)
Invoke = Callable[..., Result]


class Place:
    """A site's folder: `site.yaml`, and two runs that share some records."""

    def __init__(self, folder: Path, key: bytes | None = None) -> None:
        self.folder, self.key = folder, key
        self.settings = folder / "site.yaml"
        self.ledger = WithdrawalLedger(folder / "memory")
        lines = ["site: north", "superlink: server:9092", "data: {root: images}"]
        if key:
            (folder / "memory.key").write_bytes(base64.b64encode(key))
            (folder / "memory.key").chmod(0o600)
            lines.append("memory: {key: 'file:memory.key'}")
        self.settings.write_text("\n".join(lines))

    def store(self, run: str, site: str = "north") -> MemoryStore:
        return MemoryStore(self.folder / "memory" / "runs" / run, run=run, site=site, key=self.key)

    def fill(self) -> None:
        """`first` holds a, b, c of January and d of March; `second` holds a and e of March, without class names."""
        self.save("first", {"a": 0, "b": 0, "c": 1, "d": 2}, [JANUARY] * 3 + [MARCH], NAMES)
        self.save("second", {"a": 0, "e": 1}, [MARCH] * 2, ())

    def save(self, run: str, labels: dict[str, int], days: list[date], names: tuple[str, ...]) -> None:
        images = torch.full((len(labels), 3, 8, 8), 7, dtype=torch.uint8)
        samples = Samples(images, torch.tensor(list(labels.values())), tuple(labels))
        taken = tuple(Taken(label, day) for label, day in zip(labels.values(), days, strict=True))
        self.store(run).save(ReplayMemory(2, samples, taken, names))

    def records(self, run: str) -> tuple[str, ...]:
        return self.store(run).load().record_ids

    def call(self, *words: str, answer: str | None = None) -> Result:
        app = command_line("dynammo-site")
        app.add_typer(memory, name="memory")
        result = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["memory", *words, str(self.settings)], input=answer)
        assert isinstance(result.exception, SystemExit | None), result.exception
        return result

    def unchanged(self) -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in self.folder.rglob("*") if path.is_file()}

    def log(self) -> list[str]:
        return (self.folder / "site.log").read_text().splitlines()


@pytest.fixture(params=[None, KEY], ids=["plain", "encrypted"])
def place(tmp_path: Path, request: pytest.FixtureRequest) -> Place:
    made = Place(tmp_path, request.param)
    made.fill()
    return made


def cells(line: str) -> list[str]:
    return re.split(r"  +", line.strip())


# --- status


def test_status_shows_each_run_by_class(place: Place) -> None:
    result = place.call("status")
    assert result.exit_code == 0
    rows = [cells(line) for line in result.stdout.splitlines()]
    # an image of 3 * 8 * 8 = 192 bytes
    assert rows.count(["class", "exemplars", "patients", "task", "bytes", "oldest"]) == 2
    for row in (
        ["naevus", "2", "2", "1", "384", "2026-01-15"],
        ["melanoma", "1", "1", "2", "192", "2026-01-15"],
        ["wart [red]", "1", "1", "3", "192", "2026-03-02"],
        ["0", "1", "1", "1", "192", "2026-03-02"],
        ["1", "1", "1", "2", "192", "2026-03-02"],
    ):
        assert rows.count(row) == 1, row
    sealed = "encrypted" if place.key else "not encrypted"
    for run in ("first", "second"):
        assert f"{run}: after task 3, {place.store(run).path.stat().st_size:,} bytes, {sealed}" in result.stdout
    assert f"2 memories in {place.folder / 'memory'}, 0 withdrawn records, 0 ids of withdrawn patients" in result.stdout


def test_a_class_is_as_old_as_its_oldest_exemplar(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.save("late", {"a": 1, "b": 1, "c": 1}, [MARCH, JANUARY, MARCH], NAMES)
    rows = [cells(line) for line in place.call("status").stdout.splitlines()]
    assert ["melanoma", "3", "3", "2", "576", "2026-01-15"] in rows


def test_status_of_a_site_that_has_remembered_nothing(tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    result = Place(tmp_path).call("status")
    spent = "privacy: epsilon 0 without a limit spent by all runs, at delta 1e-05"
    words = f"0 memories in {tmp_path / 'memory'}, 0 withdrawn records, 0 ids of withdrawn patients\n{spent}\n"
    assert (result.exit_code, result.stdout) == (0, words)
    assert sorted(tmp_path.rglob("*")) == [*before, tmp_path / "site.yaml"]


def test_status_goes_on_after_a_memory_that_cannot_be_read(place: Place) -> None:
    path = place.store("first").path
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    result = place.call("status")
    assert result.exit_code == 1
    assert f"the sealed file {path} cannot be read" in result.stdout
    assert "second: after task 3" in result.stdout


def test_a_memory_from_before_the_site_had_a_key_is_shown_for_what_it_is(tmp_path: Path) -> None:
    Place(tmp_path).fill()
    place = Place(tmp_path, KEY)
    place.save("third", {"f": 0}, [MARCH], NAMES)
    result = place.call("status")
    assert result.exit_code == 0
    assert result.stdout.count("not encrypted") == 2
    assert result.stdout.count("encrypted") == 3


def test_another_key_or_none_is_refused(tmp_path: Path) -> None:
    place = Place(tmp_path, KEY)
    place.fill()
    (tmp_path / "memory.key").write_bytes(base64.b64encode(KEY[::-1]))
    for words in (["status"], ["export-index"], ["purge", "--record-id", "a", "--yes"]):
        result = place.call(*words)
        assert result.exit_code == 1
        assert "is encrypted with another key" in result.output
    (tmp_path / "memory.key").unlink()
    result = place.call("status")
    assert result.exit_code == 1
    assert "memory.key cannot be read: No such file" in result.stderr
    place.settings.write_text(place.settings.read_text().replace("memory: {key: 'file:memory.key'}", ""))
    assert "is encrypted, and this site names no key" in place.call("status").stdout
    assert place.records("first") == ("a", "b", "c", "d")


# --- export-index


def test_the_index_goes_to_stdout_or_to_a_file_of_the_owner(place: Place) -> None:
    expected = [
        ["record_id", "class", "run", "task", "taken", "patient"],
        ["a", "naevus", "first", "1", "2026-01-15", "a"],
        ["b", "naevus", "first", "1", "2026-01-15", "b"],
        ["c", "melanoma", "first", "2", "2026-01-15", "c"],
        ["d", "wart [red]", "first", "3", "2026-03-02", "d"],
        ["a", "0", "second", "1", "2026-03-02", "a"],
        ["e", "1", "second", "2", "2026-03-02", "e"],
    ]
    printed = place.call("export-index")
    assert list(csv.reader(printed.stdout.splitlines())) == expected
    assert "it stays at this site" in printed.stderr
    file = place.folder / "index.csv"
    written = place.call("export-index", "--output", str(file))
    assert (written.exit_code, written.stdout) == (0, "")
    assert "it stays at this site" in written.stderr
    assert file.read_text() == printed.stdout
    assert file.stat().st_mode & 0o777 == 0o600


# --- purge


def test_a_record_goes_from_every_run_and_is_never_chosen_again(place: Place) -> None:
    result = place.call("purge", "--record-id", "a", "--record-id", "never seen", "--yes")
    assert result.exit_code == 0, result.output
    assert place.records("first") == ("b", "c", "d")
    assert place.records("second") == ("e",)
    assert place.ledger.is_withdrawn(["a", "b", "never seen"]).tolist() == [True, False, True]
    assert ["never seen", "in no memory"] in [cells(line) for line in result.stdout.splitlines()]
    assert "purge by record: 2 exemplars of 2 records removed" in result.stdout
    assert "Backups of the memory" in result.stdout
    left = place.store("first").load()
    assert (left.task, left.class_names) == (2, NAMES)
    assert left.taken == (Taken(0, JANUARY), Taken(1, JANUARY), Taken(2, MARCH))


def test_a_purge_discards_the_features_of_all_runs(place: Place) -> None:
    for run in ("first", "third"):
        files = FeatureFiles(place.folder / "memory" / "runs", 2**20, run=run, site="north", key=place.key)
        images = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
        files.get(["features"], Samples(images, torch.zeros(1, dtype=torch.int64), ("a",)), lambda: torch.ones(2))
    assert len(list(place.folder.rglob("features/*"))) == 2
    assert place.call("purge", "--record-id", "a", "--yes").exit_code == 0
    assert not list(place.folder.rglob("features/*"))


def test_a_purge_deletes_the_heads_that_the_site_made_for_itself(place: Place) -> None:
    for run in ("first", "third"):
        file = StatisticsFile(place.folder / "memory" / "runs" / run, run=run, site="north", key=place.key)
        file.save({"mean": torch.ones(2)})
        file.save_tested({"weight": torch.ones(2)}, task=1, model="abc", content=HEAD)
    assert len(list(place.folder.rglob("heads/*"))) == 2
    assert place.call("purge", "--record-id", "a", "--yes").exit_code == 0
    assert not list(place.folder.rglob("heads/*"))
    assert len(list(place.folder.rglob("statistics.sealed"))) == 2


def test_the_log_has_one_line_that_names_nobody(place: Place) -> None:
    place.call("purge", "--record-id", "never seen", "--record-id", "a", "--yes")
    (line,) = place.log()
    hashes = " ".join(digest[:12] for digest in place.ledger.hashes(["a", "never seen"]))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d INFO memory (.*)", line)
    assert line.endswith(f"INFO memory purge by record: 2 exemplars of 2 records removed: {hashes}")
    assert "never seen" not in line
    assert (place.folder / "site.log").stat().st_mode & 0o777 == 0o600
    place.call("purge", "--class", "melanoma", "--yes")
    assert len(place.log()) == 2
    assert "melanoma" not in place.log()[1]  # beside a hash, it would be a diagnosis


@pytest.mark.parametrize(
    ("words", "gone"),
    [
        (["--class", "naevus"], {"a", "b"}),
        (["--class", "1"], {"e"}),  # where no names are stored, by the index
        (["--before", "2026-03-02"], {"a", "b", "c"}),  # a is in `second` since March, and goes there too
        (["--before", "2026-03-03"], {"a", "b", "c", "d", "e"}),
        (["--class", "naevus", "--before", "2026-03-02"], {"a", "b"}),
        (["--class", "0", "--run", "second"], {"a"}),
        (["--before", "2026-03-03", "--run", "second"], {"a", "e"}),
    ],
)
def test_records_by_class_day_and_run(tmp_path: Path, words: list[str], gone: set[str]) -> None:
    place = Place(tmp_path)
    place.fill()
    result = place.call("purge", *words, "--yes")
    assert result.exit_code == 0, result.output
    assert set(place.records("first")) == {"a", "b", "c", "d"} - gone
    assert set(place.records("second")) == {"a", "e"} - gone
    everybody = ["a", "b", "c", "d", "e"]
    assert {record for record, out in zip(everybody, place.ledger.is_withdrawn(everybody), strict=True) if out} == gone


@pytest.mark.parametrize("answer", ["n\n", "\n", ""])
def test_without_a_yes_nothing_changes(place: Place, answer: str) -> None:
    before = place.unchanged()
    result = place.call("purge", "--record-id", "a", answer=answer)
    assert result.exit_code == 1
    assert "never choose these 1 records again?" in result.stdout
    assert ["a", "naevus", "first", "1", "2026-01-15", "a"] in [cells(line) for line in result.stdout.splitlines()]
    assert place.unchanged() == before
    assert place.call("purge", "--record-id", "a", answer="y\n").exit_code == 0
    assert place.records("second") == ("e",)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "purge is not told which records. Accepted: --record-id or --patient, once or more; or --class"),
        (["--run", "first"], "is not told which records"),
        (["--record-id", "a", "--class", "naevus"], "is not told which records"),
        (["--record-id", "a", "--before", "2026-03-02"], "is not told which records"),
        (["--record-id", "a", "--run", "first"], "is not told which records"),
        (["--class", "naevos"], "unknown class 'naevos' (did you mean 'naevus'?). Accepted: 0, 1, melanoma, naevus"),
        (["--class", "naevus", "--run", "frist"], "unknown run 'frist' (did you mean 'first'?). Accepted: first, sec"),
    ],
)
def test_a_purge_that_is_not_clear_is_refused(tmp_path: Path, words: list[str], said: str) -> None:
    place = Place(tmp_path)
    place.fill()
    before = place.unchanged()
    result = place.call("purge", *words, "--yes")
    assert result.exit_code == 1
    assert said in result.stderr
    assert place.unchanged() == before


def test_a_class_and_a_day_that_nothing_fits(place: Place) -> None:
    before = place.unchanged()
    result = place.call("purge", "--class", "naevus", "--before", "2026-01-15", "--yes")
    assert (result.exit_code, result.stdout) == (0, "No exemplar fits. Nothing was changed.\n")
    assert place.unchanged() == before


def test_a_memory_that_cannot_be_read_stops_a_purge_before_it_begins(place: Place) -> None:
    """It may hold the record: "removed" would be a promise that nobody can keep."""
    path = place.store("second").path
    path.write_bytes(path.read_bytes()[:-1])
    before = place.unchanged()
    result = place.call("purge", "--record-id", "a", "--yes")
    assert result.exit_code == 1
    assert f"the sealed file {path} cannot be read" in result.stderr
    assert place.unchanged() == before


def test_a_purge_that_cannot_be_logged_is_not_done(place: Place) -> None:
    (place.folder / "site.log").mkdir()
    before = place.unchanged()
    result = place.call("purge", "--record-id", "a", "--yes")
    assert result.exit_code == 1
    assert "nothing was changed, for the log" in result.stderr
    assert place.unchanged() == before


def test_a_purge_that_stopped_half_way_is_ended_by_the_next(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second memory could not be written. The ledger knows already, so the record is not used any more."""
    replace = Path.replace

    def full(self: Path, target: Path) -> Path:
        if target == place.store("second").path:
            raise OSError(28, os.strerror(28))
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        stopped = place.call("purge", "--record-id", "a", "--yes")
    assert stopped.exit_code == 1
    assert "No space left on device" in stopped.stderr
    assert place.records("second") == ("a", "e")
    assert place.ledger.allowed(place.store("second").load()).record_ids == ("e",)
    assert place.call("purge", "--record-id", "a", "--yes").exit_code == 0
    assert place.records("second") == ("e",)


def test_no_settings_is_one_paragraph(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.settings.unlink()
    for words in (["status"], ["export-index"], ["purge", "--record-id", "a", "--yes"]):
        result = place.call(*words)
        assert result.exit_code == 1
        assert result.stderr.startswith("error no configuration file")


@given(st.binary(max_size=60), st.booleans())
def test_no_damaged_file_brings_a_traceback(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, of_the_ledger: bool
) -> None:
    place = Place(tmp_path_factory.mktemp("site"))
    place.fill()
    path = place.ledger.path if of_the_ledger else place.store("first").path
    path.write_bytes(content)
    for words in (["status"], ["purge", "--record-id", "a", "--yes"]):
        result = place.call(*words)
        assert result.exit_code == 1
        assert "cannot be read" in result.output
    assert path.read_bytes() == content
    assert place.records("second") == ("a", "e")


@pytest.mark.parametrize("key", [None, KEY])
def test_sums_that_contain_withdrawn_records_are_told_of(tmp_path: Path, key: bytes | None) -> None:
    place, run = Place(tmp_path, key), CliRunner().invoke
    note = SumsNote(tmp_path / "memory" / "runs" / "first", run="first", site="north", key=key)
    images = torch.arange(3, dtype=torch.uint8).reshape(3, 1, 1, 1)
    note.note(0, Samples(images, torch.tensor([0, 0, 1]), ("a", "a", "b")))
    said = run(memory, ["purge", str(place.settings), "--record-id", "a", "--yes"]).output
    assert "first: the server's sums contain 3 images of this site; 2 of withdrawn records" in said
    shown = run(memory, ["status", str(place.settings)])
    assert shown.exit_code == 0
    assert "2 of withdrawn records" in shown.output
    note.path.write_bytes(note.path.read_bytes()[:-1])
    broken = run(memory, ["status", str(place.settings)])
    assert broken.exit_code == 1
    assert "the note of what the sums contain cannot be used" in broken.output


# --- patients


def with_patients(place: Place, patients: dict[str, str]) -> None:
    """The data set of the site: an image file per record, of the patient that is said, if any is."""
    root = place.folder / "images"
    root.mkdir()
    rows = [["path", "label", "split", "patient"]]
    for number, (record, patient) in enumerate(patients.items()):
        Image.new("L", (8, 8), number).save(root / f"{record}.png")
        rows.append([f"{record}.png", "naevus", "train", patient])
    with (root / "manifest.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows if any(patients.values()) else [row[:3] for row in rows])


def test_status_and_index_say_who_stands_behind_a_class(tmp_path: Path) -> None:
    place = Place(tmp_path)
    images = torch.zeros(3, 3, 8, 8, dtype=torch.uint8)
    shown = Samples(images, torch.tensor([0, 0, 1]), ("a", "b", "c"), ("ann", "ann", "bob"))
    place.store("first").save(ReplayMemory(0, shown, (Taken(0, MARCH),) * 3, NAMES))
    rows = [cells(line) for line in place.call("status").stdout.splitlines()]
    assert ["naevus", "2", "1", "1", "384", "2026-03-02"] in rows
    index = list(csv.reader(place.call("export-index").stdout.splitlines()))
    assert [row[-1] for row in index] == ["patient", "ann", "ann", "bob"]


def test_a_patient_goes_with_all_records_and_those_to_come(place: Place) -> None:
    """Of `a` the data set knows the patient, of `n` a memory, of `s` the note of sums alone; `e` is another's."""
    with_patients(place, {"a.x": "ann", "b": "ann", "e": "eve"})
    place.save("first", {"a.x.png": 0, "c": 1}, [MARCH] * 2, NAMES)
    third = Samples(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.tensor([0]), ("n",), ("ann",))
    place.store("third").save(ReplayMemory(0, third, (Taken(0, MARCH),), NAMES))
    note = SumsNote(place.folder / "memory" / "runs" / "first", run="first", site="north", key=place.key)
    note.note(0, Samples(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.tensor([0, 0]), ("s", "e"), ("ann", "eve")))
    result = place.call("purge", "--patient", "ann", "--yes")
    assert result.exit_code == 0, result.output
    assert place.records("first") == ("c",)
    assert place.records("third") == ()
    assert place.records("second") == ("a", "e")
    everybody = ["a.x.png", "b.png", "n", "s", "e.png", "c"]
    assert place.ledger.is_withdrawn(everybody).tolist() == [True, True, True, True, False, False]
    assert place.ledger.is_withdrawn(["later.png"], ["ann"]).tolist() == [True]
    assert place.ledger.count() == (4, 2)  # as it was named, and as DICOM images would name it
    assert "purge by patient: 2 exemplars of 4 records removed" in result.stdout
    assert "the server's sums contain 2 images of this site; 1 of withdrawn records" in result.stdout
    (line,) = place.log()
    (audited,) = AuditLog(place.folder / "audit.jsonl").read().entries
    assert {name: audited.fields[name] for name in ("records", "patients", "exemplars", "selection")} == {
        "records": 4,
        "patients": 1,
        "exemplars": 2,
        "selection": "patient",
    }
    assert "ann" not in line + json.dumps(audited.fields) + place.ledger.path.read_text()
    assert "0 withdrawn records" not in place.call("status").stdout
    assert "4 withdrawn records, 2 ids of withdrawn patients" in place.call("status").stdout


def test_a_patient_of_whom_nothing_is_here_yet_stays_out_too(place: Place) -> None:
    with_patients(place, {"a": "ann"})
    before = place.records("first")
    asked = place.call("purge", "--patient", "new", answer="y\n")
    assert asked.exit_code == 0, asked.output
    assert "never choose these 0 records and all to come of 1 patients again?" in asked.stdout
    assert "no record here shows the patient 'new'; is it spelt so?" in asked.stdout
    assert place.records("first") == before
    assert place.ledger.is_withdrawn(["x"], ["new"]).tolist() == [True]


def test_a_patient_of_dicom_images_goes_by_the_number_that_the_hospital_knows(place: Place) -> None:
    with_patients(place, {"a": hash_patient("4711"), "b": hash_patient("4712")})
    done = place.call("purge", "--patient", "4711", "--yes")
    assert done.exit_code == 0 and "is it spelt so" not in done.stdout
    assert place.ledger.is_withdrawn(["a.png", "b.png"]).tolist() == [True, False]
    assert place.ledger.is_withdrawn(["x", "y"], [hash_patient("4711"), "4712"]).tolist() == [True, False]


def test_where_the_data_name_no_patients_each_record_is_one(place: Place) -> None:
    with_patients(place, {"a": "", "b": ""})
    place.save("first", {"a.png": 0, "b.png": 0}, [MARCH] * 2, NAMES)
    assert place.call("purge", "--patient", "a.png", "--yes").exit_code == 0
    assert place.records("first") == ("b.png",)


def test_records_and_patients_can_be_named_together(place: Place) -> None:
    with_patients(place, {"x": "ann"})
    assert place.call("purge", "--patient", "ann", "--record-id", "d", "--yes").exit_code == 0
    assert place.ledger.is_withdrawn(["x.png", "d", "a"]).tolist() == [True, True, False]
    assert "purge by record and patient" in place.log()[0]


def test_without_the_data_set_nobody_knows_the_records_of_a_patient(place: Place) -> None:
    before = place.unchanged()
    result = place.call("purge", "--patient", "ann", "--yes")
    assert result.exit_code == 1
    assert "nothing was changed, for it cannot be found out which records belong to a patient" in result.stderr
    assert "name the records by --record-id" in result.stderr
    assert place.unchanged() == before
