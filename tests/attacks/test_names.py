"""Names that others choose: a server's for a run, anybody's for a class; none is a path, a formula or markup."""

from __future__ import annotations

import base64
import csv
import multiprocessing
import re
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import torch
from hospitals import deployed, make_hospital, with_images
from small_runs import small_config
from typer.testing import CliRunner

from client.commands.memory import memory
from client.commands.predict import Finding, as_csv
from client.consent.settings import load_site
from client.hospital.hospital import Hospital, Request
from client.state.feature_files import FOLDER
from client.state.run_folders import OF_A_RUN, run_folder, runs_folder
from client.state.statistics_file import STATISTICS_FILE, TESTED_FILE
from client.state.sums_note import NOTE_FILE
from client.state.withdrawal import LEDGER_FILE, WithdrawalLedger
from client.steps.site import Site
from dynammo_core.code_identity import project_hash
from dynammo_core.configuration.settings import DataSettings
from dynammo_core.data.datasets.manifest import load_manifest
from dynammo_core.data.samples import Samples
from dynammo_core.deployed.model_files import WEIGHTS
from dynammo_core.memory.store import MEMORY_FILE, MemoryStore, ReplayMemory, Taken
from dynammo_core.support.csv_text import as_cell, csv_lines, csv_table, from_cell, read_csv_table
from dynammo_core.support.errors import MemoryStoreError, ProtocolError
from dynammo_core.wire.protocol import Instruction
from dynammo_core.wire.tensor_store import FILE
from server.report.markdown import markdown
from server.run_directory.directory import RunDirectory
from server.run_directory.run_files import RunFiles
from simulations.comparisons.compare import Cell
from simulations.comparisons.table import _write
from simulations.measurements.figures import write_rows

NAMES_OF_A_SITE = (LEDGER_FILE, "runs", "features", "tested", "privacy.json", MEMORY_FILE, "withdrawn.jsonl.x", "a..b")
TODAY = date(2026, 3, 2)


@pytest.fixture
def alpha(tmp_path: Path) -> Path:
    return make_hospital(tmp_path / "alpha", "alpha", with_images(tmp_path, "alpha", {"0": 5, "1": 4}))


def opened(site_yaml: Path, run: str) -> Site:
    text = deployed(["beta", "alpha"], ["0", "1", "2", "3"]).canonical_json()
    sent = Instruction(text, project_hash(), run, 0, 1, "/server/says/so", {})
    return Hospital(site_yaml).open(Request(sent, {}))


def one(record: str) -> ReplayMemory:
    images = torch.full((1, 3, 8, 8), 7, dtype=torch.uint8)
    return ReplayMemory(0, Samples(images, torch.tensor([0]), (record,)), (Taken(0, TODAY),), ("naevus",))


def old_run(folder: Path, run: str, record: str) -> bytes:
    """A run as older versions kept it, directly in the memory folder."""
    store = MemoryStore(folder / run, run=run, site="alpha")
    store.save(one(record))
    return store.path.read_bytes()


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# --- names of runs


@pytest.mark.parametrize("run", NAMES_OF_A_SITE)
def test_no_name_of_a_run_meets_a_file_of_the_site(alpha: Path, run: str) -> None:
    site, folder = opened(alpha, run), load_site(alpha).memory.folder
    site.store.save(one("a"))
    assert [path.name for path in folder.iterdir()] == ["runs"]
    assert site.store.path == folder / "runs" / run / MEMORY_FILE
    ledger = WithdrawalLedger(folder)
    assert ledger.withdraw(["a"], "purge by record", TODAY) == 1
    other = opened(alpha, "another-run")  # the site goes on, and remembers what was withdrawn
    assert len(opened(alpha, run).memory().samples) == len(other.memory().samples) == 0
    assert opened(alpha, run).store.load().record_ids == ("a",)
    result = CliRunner().invoke(memory, ["purge", str(alpha), "--record-id", "a", "--yes"])
    assert result.exit_code == 0, result.output
    assert opened(alpha, run).store.load().record_ids == ()


@pytest.mark.parametrize("held", NAMES_OF_A_SITE)
def test_what_older_versions_kept_is_carried_over(alpha: Path, held: str) -> None:
    folder = load_site(alpha).memory.folder
    before = {run: old_run(folder, run, run) for run in ("digits-01", held)}
    (folder / "answers").mkdir()  # of the site, not of a run
    (folder / "answers" / "log.jsonl").write_bytes(b"{}\n")
    assert opened(alpha, held).store.load().record_ids == (held,)
    assert opened(alpha, "digits-01").store.load().record_ids == ("digits-01",)
    expected = {f"runs/{run}/{MEMORY_FILE}": content for run, content in before.items()}
    assert files(folder) == {"answers/log.jsonl": b"{}\n", **expected}
    opened(alpha, held)
    assert files(folder) == {"answers/log.jsonl": b"{}\n", **expected}
    shown = CliRunner().invoke(memory, ["status", str(alpha)])
    assert "2 memories" in shown.output


def test_an_empty_folder_in_the_place_of_the_ledger_is_taken_away(alpha: Path) -> None:
    folder = load_site(alpha).memory.folder
    (folder / LEDGER_FILE).mkdir(parents=True)
    opened(alpha, "digits-01")
    assert WithdrawalLedger(folder).withdraw(["a"], "purge by record", TODAY) == 1


def test_looking_makes_nothing(tmp_path: Path) -> None:
    assert runs_folder(tmp_path / "memory") == tmp_path / "memory" / "runs"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("renames", range(5))
def test_a_crash_on_the_way_loses_nothing(tmp_path: Path, renames: int, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("first", "runs", LEDGER_FILE)
    before = {f"runs/{run}/{MEMORY_FILE}": old_run(tmp_path, run, run) for run in names}
    done, rename = 0, Path.rename

    def dying(self: Path, target: Path) -> Path:
        nonlocal done
        if done == renames:
            raise KeyboardInterrupt  # no handler of errors is run, as in a crash
        done += 1
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", dying)
    if renames < 4:  # three runs, and the one called `runs` goes by way of another name
        with pytest.raises(KeyboardInterrupt):
            runs_folder(tmp_path)
        assert sorted(files(tmp_path).values()) == sorted(before.values())
    monkeypatch.undo()
    runs_folder(tmp_path)
    assert files(tmp_path) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs"]


def test_a_run_in_both_places_is_for_people_to_judge(tmp_path: Path) -> None:
    old_run(tmp_path, "first", "a")
    MemoryStore(tmp_path / "runs" / "first", run="first", site="alpha").save(one("b"))
    before = files(tmp_path)
    with pytest.raises(MemoryStoreError, match="one run is in two folders"):
        run_folder(tmp_path, "first")
    assert files(tmp_path) == before


def test_processes_that_carry_over_at_once_do_it_once(tmp_path: Path) -> None:
    before = {f"runs/run-{i}/{MEMORY_FILE}": old_run(tmp_path, f"run-{i}", "a") for i in range(20)}
    with multiprocessing.get_context("fork").Pool(4) as pool:
        assert pool.map(runs_folder, [tmp_path] * 16) == [tmp_path / "runs"] * 16
    assert files(tmp_path) == before


def test_two_runs_that_some_disks_take_for_one_are_told_apart(alpha: Path) -> None:
    opened(alpha, "Digits-01").store.save(one("a"))
    for other in ("digits-01", "DIGITS-01"):
        with pytest.raises(ProtocolError, match="only in upper and lower case"):
            opened(alpha, other)
    assert opened(alpha, "Digits-01").store.load().record_ids == ("a",)


def test_the_files_by_which_old_runs_are_known_are_those_that_runs_have() -> None:
    written = {MEMORY_FILE, FILE, STATISTICS_FILE, NOTE_FILE, FOLDER, TESTED_FILE.split("/")[0]}
    assert written <= OF_A_RUN
    assert LEDGER_FILE not in OF_A_RUN and WEIGHTS not in OF_A_RUN


# --- names in spreadsheets

FORMULAS = (
    "=1+1",
    "+1",
    "-1+cmd|' /C calc'!A0",
    "@SUM(1)",
    "\t=1",
    "\r=1",
    "\n=1",
    "\tnaevus",
    "  =1",
    " \t@x",
    "＝1",
    "a;=1",
    "a\n=1",
    "a\t-1",
    "=a;=b",
    "'=1",
    "''=1",
    " '=1",
    ";=1",
)
PLAIN = ("naevus", "a=b", "a-b", "'quoted'", "", "1.5", "a;b", "d'or", " a", 'say "="', "a, b")


@pytest.mark.parametrize("name", FORMULAS)
def test_no_text_is_a_formula_and_each_is_read_as_it_was(name: str) -> None:
    written = str(as_cell(name))
    assert written != name
    assert from_cell(written) == name
    for piece in (written, *written.replace("\t", ";").replace("\n", ";").replace("\r", ";").split(";")):
        assert piece.strip()[:1] not in {"=", "+", "-", "@", "＝"}
    assert written[0] not in "\t\r\n"


@pytest.mark.parametrize("name", PLAIN)
def test_plain_names_stay(name: str) -> None:
    assert as_cell(name) == from_cell(name) == name


def test_numbers_stay_numbers() -> None:
    assert csv_lines([[-1, -2.5, None, True, float("-inf"), torch.tensor(-3).item()]]) == "-1,-2.5,,True,-inf,-3\n"
    table = csv_table(["a", "b"], [{"a": -1, "b": "=x"}, {"b": "b"}])
    assert table == "a,b\n-1,'=x\n,b\n"
    assert read_csv_table(table) == [{"a": "-1", "b": "=x"}, {"a": "", "b": "b"}]


def cells(path: Path) -> list[str]:
    with path.open(encoding="utf-8", newline="") as file:
        return [value for row in csv.reader(file) for value in row]


@pytest.mark.parametrize("name", FORMULAS)
def test_the_tables_of_runs_and_comparisons_hold_no_formula(tmp_path: Path, name: str) -> None:
    directory = RunDirectory(tmp_path)
    directory.write("config.yaml", "name: x\n")
    row = {"site": "0", "after_task": 1, "true": name, "predicted": "b", "count": 3}
    directory.write_csv("confusion_matrix.csv", list(row), [row])
    directory.log("run_started", tasks=[[name, "b"]])
    run = RunFiles.read(tmp_path)
    assert run.confusions[0]["true"] == name
    assert run.confusion is not None and run.confusion[0, 0, 0, 1] == 3  # our own reader still finds the class
    _write(tmp_path / "confusion.csv", [row])
    write_rows("figures", [{"row": name, "value": -0.5}], [Cell("", "ours", 1, small_config())], tmp_path, {})
    for file in ("confusion_matrix.csv", "confusion.csv", "figures.csv"):
        assert name not in cells(tmp_path / file)
        assert as_cell(name) in cells(tmp_path / file)
    assert "-0.5" in cells(tmp_path / "figures.csv")


@pytest.mark.parametrize("name", FORMULAS)
def test_what_a_site_writes_holds_no_formula(tmp_path: Path, name: str) -> None:
    finding = Finding(Path(f"{name}.png"), ((name, 0.75), ("b", 0.25)), -1.5, "")
    (tmp_path / "answers.csv").write_text(as_csv([finding], 2), encoding="utf-8", newline="")
    assert cells(tmp_path / "answers.csv")[7:] == [
        as_cell(f"{name}.png"), as_cell(name), "0.75", "-1.5", "b", "0.25", ""
    ]  # fmt: skip
    key = base64.b64encode(bytes(32))
    (tmp_path / "memory.key").write_bytes(key)
    settings = tmp_path / "site.yaml"
    settings.write_text("site: alpha\nsuperlink: server:9092\ndata: {root: images}\n")
    old_run(tmp_path / "memory", "first", name)
    index = tmp_path / "index.csv"
    assert CliRunner().invoke(memory, ["export-index", str(settings), "--output", str(index)]).exit_code == 0
    shown = cells(index)[6]
    assert shown == as_cell(name)
    # Who copies the name from the list withdraws the record that is meant.
    assert CliRunner().invoke(memory, ["purge", str(settings), "--record-id", shown, "--yes"]).exit_code == 0
    assert WithdrawalLedger(tmp_path / "memory").is_withdrawn([name])[0]


def test_a_manifest_that_was_made_safe_names_the_same_classes(tmp_path: Path) -> None:
    root = with_images(tmp_path, "alpha", {"0": 5, "1": 4})
    manifest = root / "manifest.csv" if root.is_dir() else root
    text = manifest.read_text().splitlines()
    columns = text[0].split(",")
    label = columns.index("label")
    rows = [line.split(",") for line in text[1:]]
    for row in rows:
        row[label] = str(as_cell(f"={row[label]}"))
    manifest.write_text(csv_lines([columns]) + "".join(",".join(row) + "\n" for row in rows))
    assert load_manifest(DataSettings(dataset="manifest", root=str(manifest))).class_names == ("=0", "=1")


# --- names in pages and terminals


@pytest.mark.parametrize("name", [*FORMULAS, "| a", "# a", "[x](javascript:1)", "a\n# b", "<b>"])
def test_a_name_is_text_in_markdown(name: str) -> None:
    template: Any = markdown().from_string("| {{ name | cell }} |\n")
    (line,) = template.render(name=name).splitlines()
    bare = re.sub(r"\\.", "", line[2:-2])
    assert bare.isprintable()
    assert not set(bare) & set("`*_[]<>|#")
