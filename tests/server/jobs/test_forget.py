"""Withdrawn records leave a run's sums: what stays is what a run that never had them has, whatever goes wrong."""

from __future__ import annotations

import base64
import csv
import json
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Context, Message, RecordDict
from hospitals import Hospitals, deployed, make_hospital, make_hospitals, with_images
from safetensors.torch import load_file
from small_runs import Stopped, events, run_small
from typer.testing import CliRunner

from client.commands.memory import memory
from client.consent.settings import load_site
from client.state.withdrawal import WithdrawalLedger
from dynammo_core.configuration.config import Config
from dynammo_core.experiment import Experiment
from dynammo_core.support.errors import RunError
from server.consortium.consortium import make_consortium
from server.jobs.forget import forget_run
from server.jobs.jobs import correction
from server.run_directory.directory import Listener
from server.watch.tables import correction_lines

CLASSES = ["0", "1", "2", "3"]
HELD: Mapping[str, Mapping[str, int]] = {
    "alpha": {"0": 9, "1": 9, "2": 9, "3": 9},
    "beta": {"0": 9, "2": 9},
    "gamma": {"1": 9, "3": 7},
}
METHOD = "streaming_ridge"
SECTIONS: Mapping[str, Any] = {"method": {"regulariser": 1.0}}
"""With so few images the default is next to 0, and the classifier a thousand times less exact than the sums."""


class Line(Hospitals):
    """Hospitals on a line that is listened to, and that may lose an answer on its way back."""

    def __init__(self, files: Mapping[str, Path]) -> None:
        super().__init__(files)
        self.answers: list[Message] = []
        self.lose: set[str] = set()

    def _at_home(self, message: Message, context: Context) -> Message:
        answer = super()._at_home(message, context)
        self.answers.append(answer)
        if self.names[context.node_id] in self.lose:
            raise ConnectionError("the answer is lost")
        return answer


@dataclass
class Place:
    """A consortium in a folder, whose run may be interrupted, corrected and gone on with."""

    folder: Path
    held: Mapping[str, Mapping[str, int]] = field(default_factory=lambda: HELD)
    without: Collection[str] = ()
    changes: Mapping[str, Any] = field(default_factory=dict)
    sections: Mapping[str, Any] = field(default_factory=lambda: SECTIONS)
    method: str = METHOD
    made: bool = False

    def __post_init__(self) -> None:
        if not self.made:
            self._make()
        self.line = Line({name: self.folder / name / "site.yaml" for name in self.held})

    def _make(self) -> None:
        for name, held in self.held.items():
            manifest = with_images(self.folder, name, held) / "manifest.csv"
            rows = list(csv.reader(manifest.open()))
            with manifest.open("w", newline="") as file:
                csv.writer(file).writerows(row for row in rows if row[0] not in self.without)
            make_hospital(self.folder / name, name, self.folder / name / "images", **self.changes)

    def copy(self, folder: Path) -> Place:
        """With all that lies at the sites and at the server."""
        shutil.copytree(self.folder, folder)
        for name in self.held:
            text = (folder / name / "site.yaml").read_text()
            (folder / name / "site.yaml").write_text(text.replace(str(self.folder), str(folder)))
        return replace(self, folder=folder, made=True)

    @property
    def config(self) -> Config[Any]:
        return deployed(list(self.held), CLASSES, self.method, self.sections)

    @property
    def path(self) -> Path:
        (path,) = (path for path in (self.folder / "runs").iterdir() if path.is_dir())
        return path

    def run(self, *, resume: bool = False, listeners: Collection[Listener] = ()) -> Place:
        run_small(
            self.config,
            self.folder / "runs",
            grid=self.line,
            listeners=listeners,
            resume=self.path if resume else None,
        )
        return self

    def run_until(self, event: str, *, resume: bool = False, **fields: Any) -> Place:
        def stop(told: dict[str, Any]) -> None:
            if told["event"] == event and fields.items() <= told.items():
                raise Stopped

        with pytest.raises(Stopped):
            self.run(resume=resume, listeners=[stop])
        return self

    def withdraw(self, *records: str) -> Place:
        for file in self.line.files.values():
            site = load_site(file)
            own = [record for record in records if record.startswith(site.site)]
            WithdrawalLedger(site.memory.folder).withdraw(own, "purge by record", date(2026, 3, 1))
        return self

    def forget(self) -> dict[str, Any]:
        output = self.folder / "answer.json"
        forget_run(self.line, self.config, self.path, output)
        return dict(json.loads(output.read_text()))

    def note(self, name: str) -> Path:
        (note,) = load_site(self.line.files[name]).memory.folder.glob("runs/*/sums.sealed")
        return note

    def state(self) -> dict[str, torch.Tensor]:
        saved = load_file(self.path / "checkpoints" / "latest.safetensors")
        return {name: tensor for name, tensor in saved.items() if "heads" in name}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A finished run, not to be changed."""
    return Place(tmp_path_factory.mktemp("forget") / "original").run()


@pytest.fixture
def place(original: Place, tmp_path: Path) -> Place:
    """A finished run of one's own."""
    return original.copy(tmp_path / "with")


@pytest.fixture(scope="module")
def without_some(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A run that never had `SOME`."""
    return Place(tmp_path_factory.mktemp("forget") / "never", without=SOME).run()


def records(site: str, label: str, *positions: int) -> list[str]:
    return [f"{site}-{label}-{position}.png" for position in positions]


def same(one: Place, other: Place) -> None:
    """Sums to 1e-6 of the largest value, as features are float32 and batches differ; the float32 classifier to 5e-6."""
    first, second = one.state(), other.state()
    assert first.keys() == second.keys()
    assert len(first) > 6
    for name, tensor in first.items():
        scale = float(second[name].double().abs().max())
        bound = 1e-6 if tensor.dtype == torch.float64 else 5e-6
        assert float((tensor - second[name]).abs().max()) <= bound * scale, name
    model, expected = (load_file(place.path / "model.safetensors") for place in (one, other))
    torch.testing.assert_close(model, expected, rtol=1e-5, atol=1e-6)
    for file in ("accuracy_matrix.csv", "confusion_matrix.csv"):
        tables = [list(csv.DictReader((place.path / file).open())) for place in (one, other)]
        last = [[row for row in rows if row["after_task"] == rows[-1]["after_task"]] for rows in tables]
        assert last[0] == last[1]


SOME = [*records("alpha", "0", 2, 5), *records("alpha", "3", 0), *records("gamma", "1", 8)]
OF_A_CLASS = [f"{site}-3-{position}.png" for site in ("alpha", "gamma") for position in range(HELD[site]["3"])]


def test_sums_on_features_that_were_tuned_before_are_corrected_too(tmp_path: Path) -> None:
    """The network was tuned on the first task alone, and what goes came with the second."""
    gone = [*records("alpha", "3", 0, 4), *records("beta", "2", 1)]
    place = Place(tmp_path / "with", method="first_session").run().withdraw(*gone)
    assert place.forget()["corrected"] == ["alpha", "beta"]
    same(place, Place(tmp_path / "never", without=gone, method="first_session").run())


@pytest.mark.parametrize("gone", [SOME, OF_A_CLASS], ids=["some", "class"])
def test_what_stays_is_what_a_run_without_the_records_has(place: Place, tmp_path: Path, gone: list[str]) -> None:
    before = place.state()
    answer = place.withdraw(*gone).forget()
    never = Place(tmp_path / "never", without=gone).run()
    same(place, never)
    assert answer["corrected"] == ["alpha", "gamma"]
    assert answer["nothing_to_correct"] == ["beta"]
    counts = {
        name: tensor for name, tensor in place.state().items() if name.startswith("archive/") and "counts" in name
    }
    (name,) = counts
    assert before[name].sum() - counts[name].sum() == len(gone)
    if gone is OF_A_CLASS:
        assert not place.state()["archive/heads.classes.products"][3].any()  # 0, and no rounding error


def test_withdrawn_while_a_task_is_counted_and_not_yet_summed(tmp_path: Path) -> None:
    """Its classes keep the weights that were made of their numbers."""
    gone = [*records("alpha", "0", 2), *records("beta", "0", 1)]
    place = Place(tmp_path / "with").run_until("step_started", task=1, stage="sum").withdraw(*gone)
    assert place.forget()["corrected"] == ["alpha", "beta"]
    same(place.run(resume=True), Place(tmp_path / "never", without=gone).run())


def test_one_site_alone(tmp_path: Path) -> None:
    held = {"alpha": HELD["alpha"]}
    gone = records("alpha", "1", 1, 3)
    place = Place(tmp_path / "with", held).run().withdraw(*gone)
    shown = CliRunner().invoke(memory, ["status", str(place.line.files["alpha"])], catch_exceptions=False).output
    assert "the server's sums contain 36 images of this site; 2 of withdrawn records" in shown
    place.forget()
    shown = CliRunner().invoke(memory, ["status", str(place.line.files["alpha"])], catch_exceptions=False).output
    assert "the server's sums contain 34 images of this site\n" in shown
    same(place, Place(tmp_path / "never", held, without=gone).run())


def test_withdrawn_in_the_middle(tmp_path: Path) -> None:
    """Between two tasks, some at once and some in the end, and one of a task that is yet to come."""
    early, late = records("alpha", "0", 2), [*records("beta", "0", 1), *records("alpha", "2", 4)]
    place = Place(tmp_path / "with").run_until("task_evaluated", task=0)
    place.withdraw(*early, *records("gamma", "3", 3)).forget()
    place.run(resume=True).withdraw(*late).forget()
    same(place, Place(tmp_path / "never", without=[*early, *late, *records("gamma", "3", 3)]).run())


def test_all_of_everything(tmp_path: Path) -> None:
    """A classifier of nothing answers nothing; what is left is 0 and no rounding error."""
    held = {"alpha": {"0": 4, "1": 4, "2": 4, "3": 4}}
    place = Place(tmp_path, held).run()
    place.withdraw(*(f"alpha-{label}-{position}.png" for label in CLASSES for position in range(4))).forget()
    for name, tensor in place.state().items():
        assert "sample_weight" in name or not tensor.any(), name


# --- what is lost on the way


def test_twice_is_as_good_as_once(place: Place) -> None:
    place.withdraw(*SOME)
    place.forget()
    once, note = place.state(), place.note("alpha").read_bytes()
    assert place.forget()["corrected"] == []
    again = place.state()
    assert all(torch.equal(tensor, again[name]) for name, tensor in once.items())
    assert place.note("alpha").read_bytes() == note


def test_asked_before_anything_is_withdrawn_it_corrects_what_is_withdrawn_later(
    place: Place, without_some: Place
) -> None:
    assert place.forget()["corrected"] == []
    assert place.withdraw(*SOME).forget()["corrected"] == ["alpha", "gamma"]
    same(place, without_some)


@pytest.mark.parametrize("asked_again", ["at once", "after the others", "after another purge"])
def test_an_answer_that_is_lost_is_asked_for_again(
    place: Place, without_some: Place, tmp_path: Path, asked_again: str
) -> None:
    place.withdraw(*SOME)
    place.line.lose = {"alpha", "gamma"} if asked_again == "at once" else {"alpha"}
    failed = place.forget()["failures"]
    assert set(failed) == place.line.lose
    place.line.lose = set()
    gone = SOME
    if asked_again == "after another purge":
        gone = [*SOME, *records("alpha", "0", 7)]
        place.withdraw(*gone)
    assert "alpha" in place.forget()["corrected"]
    same(place, without_some if gone == SOME else Place(tmp_path / "never", without=gone).run())


def test_a_sum_that_never_arrived_is_not_subtracted(tmp_path: Path) -> None:
    """Alpha notes what it would contribute to the first task, and the server goes on without it."""
    place = Place(tmp_path, sections={"federation": {"quorum": 0.5, "attempts": 1}})
    place.line.lose = {"alpha"}

    def come_back(event: dict[str, Any]) -> None:
        if event["event"] == "step_finished" and event["stage"] == "sum":
            place.line.lose = set()

    before = place.run(listeners=[come_back]).state()
    place.withdraw(*records("alpha", "0", 2, 5), *records("alpha", "2", 1)).forget()
    after = place.state()
    (counts,) = (name for name in after if name.startswith("archive/") and "counts" in name)
    assert (before[counts] - after[counts]).tolist() == [0, 0, 1, 0]


@pytest.mark.parametrize(
    ("where", "asked_again"),
    [
        ("server.run_directory.checkpoint.write_atomically", ["alpha", "gamma"]),
        ("server.jobs.forget.Correction.test_again", []),
    ],
    ids=["before its checkpoint", "behind its checkpoint"],
)
def test_a_server_that_dies_ends_the_next_time(
    place: Place, without_some: Place, monkeypatch: pytest.MonkeyPatch, where: str, asked_again: list[str]
) -> None:
    place.withdraw(*SOME)

    def die(*_: object) -> None:
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(where, die)
        with pytest.raises(Stopped):
            place.forget()
    assert place.forget()["corrected"] == asked_again
    same(place, without_some)


def test_a_site_that_dies_between_note_and_answer_answers_the_next_time(
    place: Place, without_some: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.withdraw(*SOME)

    def die(*_: object) -> None:
        raise OSError("the power is gone")

    with monkeypatch.context() as patch:
        patch.setattr("client.steps.actions._sums", die)
        with pytest.raises(RunError, match="no site answered"):
            place.line.away.add("beta")
            place.forget()
    place.line.away.clear()
    place.forget()
    same(place, without_some)


# --- what a site keeps back


def test_an_image_that_is_gone_or_changed_stays_and_is_shown(place: Place, tmp_path: Path) -> None:
    """Deleted with its row, changed into another image, no image at all; and one that is whole."""
    deleted, (changed, damaged, whole) = "alpha-0-2.png", records("alpha", "1", 0, 1, 2)
    images = place.folder / "alpha" / "images"
    (images / deleted).unlink()
    rows = (images / "manifest.csv").read_text().splitlines(keepends=True)
    (images / "manifest.csv").write_text("".join(row for row in rows if not row.startswith(deleted)))
    (images / changed).write_bytes((images / "alpha-1-5.png").read_bytes())
    (images / damaged).write_bytes(b"no image")
    place.withdraw(deleted, changed, damaged, whole).forget()
    same(place, Place(tmp_path / "never", without=[whole]).run())
    shown = CliRunner().invoke(memory, ["status", str(place.line.files["alpha"])], catch_exceptions=False).output
    assert "the server's sums contain 35 images of this site; 3 of withdrawn records" in shown  # 4 classes of 9


@pytest.mark.parametrize(("fewest", "gone", "taken_out"), [(3, 2, 0), (3, 3, 3), (3, 7, 9), (9, 1, 9)])
def test_no_small_count_leaves_nor_remains(place: Place, fewest: int, gone: int, taken_out: int) -> None:
    """Of nine images: two are fewer than three; with seven gone, two would remain, so all go."""
    (place.folder / "alpha" / "policy.yaml").write_text(f"fewest_images: {fewest}\n")
    before = place.state()
    answer = place.withdraw(*records("alpha", "0", *range(gone))).forget()
    assert answer["failures"] == {}  # the step keeps them back; the door would refuse the answer
    after = place.state()
    (counts,) = (name for name in after if name.startswith("archive/") and "counts" in name)
    assert (before[counts] - after[counts]).tolist() == [taken_out, 0, 0, 0]


def test_the_note_is_private_and_encrypted_where_there_is_a_key(
    original: Place, without_some: Place, tmp_path: Path
) -> None:
    key = tmp_path / "memory.key"
    key.write_bytes(base64.b64encode(bytes(range(32))))
    key.chmod(0o600)
    place = Place(tmp_path / "with", changes={"memory": {"key": f"file:{key}"}}).run()
    assert place.note("alpha").stat().st_mode & 0o777 == 0o600
    assert b"alpha-0-2.png" in original.note("alpha").read_bytes()
    assert b".png" not in place.note("alpha").read_bytes()
    place.withdraw(*SOME).forget()
    same(place, without_some)


@pytest.mark.parametrize("damage", ["a flipped bit", "lost", "another site's"])
def test_a_note_that_is_not_whole_stops_the_correction_of_this_site_alone(place: Place, damage: str) -> None:
    place.withdraw(*SOME)
    note = place.note("alpha")
    content = bytearray(note.read_bytes())
    content[-1] ^= 1
    if damage == "lost":
        note.unlink()
    else:
        note.write_bytes(content if damage == "a flipped bit" else place.note("gamma").read_bytes())
    answer = place.forget()
    assert answer["failures"] == {"alpha": "MemoryStoreError, code 106"}
    assert answer["corrected"] == ["gamma"]


# --- what nobody learns


def test_no_record_id_leaves(place: Place) -> None:
    place.withdraw(*SOME)
    place.line.answers.clear()
    place.forget()
    assert len(place.line.answers) == 6  # three corrections, three tests
    for answer in place.line.answers:
        assert isinstance(answer.content, RecordDict)
        told = b"".join(array.data for array in answer.content.array_records["weights"].values())
        told += repr((dict(answer.content.metric_records), dict(answer.content.config_records))).encode()
        assert b"png" not in told
    written = b"".join(path.read_bytes() for path in place.path.rglob("*") if path.is_file())
    assert b"alpha-0" not in written
    (event,) = events(place.path, "forgotten")
    assert {key: event[key] for key in event if key not in ("event", "time")} == {
        "correction": 1,
        "answered": 3,
        "corrected": 2,
        "failures": [],
    }
    audit = [json.loads(line) for line in load_site(place.line.files["alpha"]).audit.read_text().splitlines()]
    (left,) = (line for line in audit if line.get("stage") == "forget")
    assert left["class_counts"] == [2, 0, 0, 1]


def test_a_method_without_sums_refuses(tmp_path: Path) -> None:
    hospitals, config = make_hospitals(tmp_path, {"alpha": HELD["alpha"]}), deployed(["alpha"], CLASSES)
    run = run_small(config, tmp_path / "runs", grid=hospitals)
    with pytest.raises(RunError, match=r"the method replay keeps no sums.*Accepted: streaming_ridge"):
        forget_run(hospitals, config, run.path, tmp_path / "answer.json")
    assert not (tmp_path / "answer.json").exists()
    assert not events(run.path, "forgotten")


def test_a_method_without_sums_is_refused_before_a_job_is_submitted(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(deployed(["alpha"], CLASSES).to_yaml())
    with pytest.raises(RunError, match="the method replay keeps no sums"):
        correction(make_consortium(tmp_path / "consortium", ["localhost"], port=9092, listen="127.0.0.1"), tmp_path)


@pytest.mark.parametrize("method", [METHOD, "moving_ridge"])
def test_hidden_sums_are_not_corrected_in_the_open(method: str) -> None:
    sections = {"federation": {"secure_aggregation": True}}
    with pytest.raises(RunError, match="noise or masks hide"):
        Experiment(deployed(list(HELD), CLASSES, method, sections)).step(0, correction=1)


@pytest.mark.parametrize("method", ["first_session", "moving_ridge"])
def test_sums_of_features_that_no_step_can_repeat_are_not_corrected(method: str) -> None:
    """Each site estimated the adapters' statistics over what it held in that very step."""
    config = deployed(list(HELD), CLASSES, method, {"scanners": {"own_statistics": "trained"}})
    with pytest.raises(RunError, match="own_statistics: trained each step has its own features"):
        Experiment(config).step(0, correction=1)
    frozen = deployed(list(HELD), CLASSES, METHOD, {"scanners": {"own_statistics": "trained"}})
    assert Experiment(frozen).step(0, correction=1).correction == 1


def test_the_operator_reads_who_took_part() -> None:
    result = {"corrected": [], "nothing_to_correct": ["b"], "failures": {"c": "NotConnected, code 0"}}
    first, second, third, last = correction_lines({**result, "model_written": False})
    assert (first, second) == ("Corrected by: no site", "Nothing to correct at: b")
    assert third == "Failed: c (NotConnected, code 0). Ask again when it is connected."
    assert "in the middle of a task" in last


def test_a_run_that_went_on_meanwhile_is_left_alone(tmp_path: Path) -> None:
    place = Place(tmp_path).run_until("task_evaluated", task=0).withdraw(*SOME)
    line, config = place.line, place.config

    class Overtaken(Line):
        def _at_home(self, message: Message, context: Context) -> Message:
            if message.metadata.message_type == "train.forget" and not line.answers:
                line.answers.append(message)
                for lock in (tmp_path / "runs").glob(".*.lock"):
                    lock.unlink()  # as on a network disk that keeps no locks
                run_small(config, tmp_path / "runs", grid=Hospitals(line.files), resume=place.path)
            return super()._at_home(message, context)

    line.answers.clear()
    place.line = Overtaken(line.files)
    with pytest.raises(RunError, match="the run has moved on meanwhile"):
        place.forget()
    place.line = Line(line.files)
    assert place.forget()["corrected"] == ["alpha", "gamma"]
