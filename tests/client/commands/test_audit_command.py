"""`dynammo-site audit` on the log of a site: what it finds, what it says it cannot find, and its page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from click.testing import Result
from small_runs import instruction, small_config, step_of
from typer.testing import CliRunner

from client.cli import app
from client.commands import audit as audit_command
from client.consent.answered import answer_entries
from client.consent.audit import AuditLog
from dynammo_core.experiment import Experiment
from dynammo_core.support.errors import DataError
from dynammo_core.wire.announcement import Announcement
from dynammo_core.wire.protocol import Report

EXPERIMENT = Experiment(small_config())
NAMES = ("naevus", "wart [red]", "c", "d")


@pytest.fixture
def site(tmp_path: Path) -> Path:
    (tmp_path / "site.yaml").write_text("site: north\nsuperlink: server:9092\ndata: {root: images}\n")
    return tmp_path


@pytest.fixture
def log(site: Path) -> AuditLog:
    """Seven lines: an announcement, three answers with a memory, a refusal and a purge."""
    log = AuditLog(site / "audit.jsonl")
    log.announced(Announcement({"naevus": 10, "wart [red]": 1}))
    weights = {"heads.task0.weight": torch.tensor([3.0, 4.0]), "extractor.adapters.0": torch.tensor([12.0])}
    counts: dict[str, float | list[int]] = {"class_counts": [3, 4, 0, 0], "seconds": 1.0}
    for stage, report in {
        "adapt": Report(False, weights, {**counts, "loss": 0.5}),
        "balance": Report(True),
        "remember": Report(False, {}, {**counts, "memory_bytes": 9.0}),
    }.items():
        step = step_of(EXPERIMENT, 0, stage)
        log.answered(answer_entries(instruction(EXPERIMENT, step, 0, site), step, report, NAMES, report.weights))
    log.refused("train.fit", 102, DataError("/images/patient-4711.png"))
    log.purged(2, 3, "record")
    return log


def call(site: Path, *words: str) -> Result:
    audit_command.console.width = 160  # a console takes its width from where it was made, which another test may be
    result = CliRunner().invoke(app, ["audit", *words, str(site / "site.yaml")])
    assert isinstance(result.exception, SystemExit | None), result.exception
    return result


def test_a_whole_log_is_whole_and_its_last_hash_is_printed(site: Path, log: AuditLog) -> None:
    result = call(site, "verify")
    assert result.exit_code == 0
    last = re.findall(r'"link": "([0-9a-f]{64})"', log.path.read_text())[-1]
    assert f"Lines: 7\nHash of the last complete line: {last}\n" in result.stdout
    assert "file alone cannot show that lines are missing" in result.stdout


@pytest.mark.parametrize("number", [1, 3, 7])
def test_the_first_bad_line_is_named(site: Path, log: AuditLog, number: int) -> None:
    lines = log.path.read_text().splitlines(keepends=True)
    lines[number - 1] = lines[number - 1].replace('"event": "', '"event": "x')
    log.path.write_text("".join(lines))
    for command in ("verify", "report"):
        result = call(site, command)
        assert result.exit_code == 1
        assert f"was changed: line {number} does not follow from the line before it" in result.stderr


def test_lines_cut_off_the_end_are_found_by_what_was_written_down(site: Path, log: AuditLog) -> None:
    links = re.findall(r'"link": "([0-9a-f]{64})"', log.path.read_text())
    assert "hash is in line 7" in call(site, "verify", "--expect", links[6]).stdout
    assert "hash is in line 4" in call(site, "verify", "--expect", links[3][:16]).stdout  # it has grown since
    log.path.write_text("".join(log.path.read_text().splitlines(keepends=True)[:6]))
    assert call(site, "verify").exit_code == 0
    result = call(site, "verify", "--expect", links[6])
    assert result.exit_code == 1
    assert "lines were cut off the end, or the log was rewritten" in result.stderr


@pytest.mark.parametrize("expect", ["", "abc", "g" * 64, "a" * 65, "A" * 64])
def test_what_is_no_hash_is_refused(site: Path, log: AuditLog, expect: str) -> None:
    result = call(site, "verify", "--expect", expect)
    assert (result.exit_code, "is not a hash" in result.stderr) == (1, True)


def test_a_line_cut_off_by_a_crash_is_named_until_it_is_closed_and_after(site: Path, log: AuditLog) -> None:
    log.path.write_bytes(log.path.read_bytes()[:-20])
    result = call(site, "verify")
    assert result.exit_code == 1
    assert "Line 7 is incomplete" in result.stdout
    assert "The site's next line will close it" in result.stdout
    log.purged(1, 1, "class")
    result = call(site, "verify")
    assert result.exit_code == 0
    assert "9 lines, all complete ones unchanged" in result.stdout
    assert "Line 7 is incomplete" in result.stdout
    assert "purged by class: 1 records, 1 exemplars" in call(site, "report").stdout


def test_a_log_that_is_not_there_is_not_called_whole(site: Path) -> None:
    result = call(site, "verify")
    assert result.exit_code == 1
    assert "cannot be read: No such file or directory" in result.stderr
    assert not (site / "audit.jsonl").exists()


def test_the_report_tells_all_on_one_page(site: Path, log: AuditLog) -> None:
    result = call(site, "report")
    assert result.exit_code == 0
    rows = {row[2]: row[3:] for line in result.stdout.splitlines() if (row := line.split())[:2] == ["task", "1"]}
    # Two tensors of three float32; the norm of (3, 4, 12) is 13.
    assert rows["adapt"] == ["1", "0", "2", "12", "bytes", "13", "13", "7"]
    assert rows["balance"] == ["1", "1", "0", "0", "bytes", "0"]
    assert rows["remember"] == ["1", "0", "0", "0", "bytes", "7"]
    assert "numbers of adapt: class_counts, loss, seconds" in result.stdout
    assert "numbers of balance: none" in result.stdout
    assert "3 answers, 12 bytes of tensors" in result.stdout
    assert "announced classes and bands: naevus: 10+, wart [red]: 1+" in result.stdout
    assert "after task 1: naevus: 3, wart [red]: 4" in result.stdout
    assert "purged by record: 2 records, 3 exemplars" in result.stdout
    assert "refused 1 times: train.fit, error 102 DataError" in result.stdout
    assert "patient-4711" not in result.stdout


def test_a_purge_is_recorded_and_not_done_where_it_cannot_be(site: Path) -> None:
    purge = ["memory", "purge", "--record-id", "a", "--record-id", "b", "--yes", str(site / "site.yaml")]
    assert CliRunner().invoke(app, purge).exit_code == 0
    log = AuditLog(site / "audit.jsonl")
    (entry,) = log.read().entries
    fields = {name: entry.fields[name] for name in ("event", "records", "exemplars", "selection")}
    assert fields == {"event": "purged", "records": 2, "exemplars": 0, "selection": "record"}
    ledger = (site / "memory" / "withdrawn.jsonl").read_bytes()
    log.path.unlink()
    log.path.mkdir()
    result = CliRunner().invoke(app, [*purge, "--record-id", "c"])
    assert (result.exit_code, "nothing leaves this site unrecorded" in result.stderr) == (1, True)
    assert (site / "memory" / "withdrawn.jsonl").read_bytes() == ledger
