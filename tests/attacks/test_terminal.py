"""Names that command a terminal, reorder its line, forge lines or are markup: nothing of it gets to a terminal."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from rich.console import RenderableType
from rich.table import Table
from typer.testing import CliRunner

from client.cli import app
from client.commands import audit as audit_command
from client.commands.predict import Finding, as_table
from client.consent.audit import AuditLog
from dynammo_core.data.samples import Samples
from dynammo_core.memory.store import MemoryStore, ReplayMemory, Taken
from dynammo_core.support.errors import ConfigError
from dynammo_core.support.terminal import Terminal, readable_errors
from server import cli as server_cli
from server.watch.lookout import Overview
from server.watch.progress import ProgressView, final_table, progress_panel
from server.watch.status import RunStatus
from server.watch.status_command import remarks, run_view, runs_table
from server.watch.tables import classes_table, correction_lines, evaluation_tables

CLEAR, TITLE, REVERSED, MARKUP = "\x1b[2J", "\x1b]0;x\x07", "\u202e", "[red]mass"
EVIL = f"{CLEAR}{TITLE}{REVERSED}\x9b2J{MARKUP}\nforged"
SHOWN = f"?[2J?]0;x???2J{MARKUP}?forged"
JANUARY = date(2026, 1, 15)


def harmless(output: str) -> None:
    """Every sign is printable, the name is there to read, markup and all, and makes no line of its own."""
    assert all(sign.isprintable() for line in output.split("\n") for sign in line), repr(output)
    assert SHOWN in output, repr(output)
    assert not any(line.lstrip("│┃ ").startswith("forged") for line in output.split("\n"))


def printed(*shown: RenderableType) -> str:
    screen = io.StringIO()
    terminal = Terminal(file=screen, width=400, color_system=None)
    for one in shown:
        terminal.print(one)
    return screen.getvalue()


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A site's settings, and its memory of a run in which a class and a record have such names."""
    (tmp_path / "site.yaml").write_text("site: north\nsuperlink: server:9092\ndata: {root: images}\n")
    samples = Samples(torch.zeros((1, 3, 8, 8), dtype=torch.uint8), torch.tensor([0]), (EVIL,))
    store = MemoryStore(tmp_path / "memory" / "runs" / "first", run="first", site="north", key=None)
    store.save(ReplayMemory(1, samples, (Taken(0, JANUARY),), (EVIL,)))
    return tmp_path / "site.yaml"


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setattr(audit_command.console, "width", 400)


def called(*words: str | Path, answer: str | None = None) -> Result:
    for module in list(sys.modules.values()):  # a console that was made before is as wide as the terminal was then
        if isinstance(own := getattr(module, "console", None), Terminal):
            own.width = 400
    result = CliRunner().invoke(app, [str(word) for word in words], input=answer, env={"COLUMNS": "400"})
    assert isinstance(result.exception, SystemExit | None), result.exception
    return result


def test_memory_status(site: Path) -> None:
    harmless(called("memory", "status", site).output)


@pytest.mark.parametrize("words", [("--class", EVIL), ("--record-id", EVIL), ("--record-id", "x" + EVIL)])
def test_memory_purge(site: Path, words: tuple[str, str]) -> None:
    harmless(called("memory", "purge", site, *words, answer="n\n").output)


def test_an_index_of_the_memory_that_a_terminal_shows(site: Path) -> None:
    """A pipe gets the names as they are: what reads it must find the records."""
    command = [sys.executable, "-c", "from client.cli import app; app()", "memory", "export-index", str(site)]
    piped = subprocess.run(command, capture_output=True, timeout=60, check=True).stdout
    assert EVIL.encode() in piped
    ours, theirs = pty.openpty()
    try:
        subprocess.run(command, stdout=theirs, stderr=subprocess.DEVNULL, timeout=60, check=True)
        seen = os.read(ours, 65536).decode().replace("\r\n", "\n")
    finally:
        os.close(theirs)
        os.close(ours)
    assert all(sign.isprintable() for line in seen.split("\n") for sign in line), repr(seen)
    assert MARKUP in seen


def test_audit_report(site: Path) -> None:
    log = AuditLog(site.parent / "audit.jsonl")
    proposal = {"verdict": "approved", "name": EVIL, "proposal": "0" * 64, "code": "0" * 64, "by": EVIL, "time": "now"}
    log.decided(proposal)
    harmless(called("audit", "report", site).output)


def test_tables_of_what_left() -> None:
    left: dict[str, Any] = {"task": 0, "stage": EVIL, "tensors": {}, "abstained": False, "bytes": 1, "norm": 1.0}
    left |= {"class_counts": None, "numbers": [EVIL]}
    output = printed(audit_command.run_table(EVIL, [left]))
    harmless(output)
    assert output.count(SHOWN) == 2


def test_predictions() -> None:
    found = Finding(Path(EVIL), ((EVIL, 0.9), (EVIL, 0.1)), 0.5)
    output = printed(as_table([found], 2, 0.4))
    harmless(output)
    assert output.count(SHOWN) == 3


def test_errors(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Exception, match="1"), readable_errors():  # typer's exit with code 1
        raise ConfigError(f"unknown class {CLEAR}{TITLE}{REVERSED}{MARKUP}\nforged")
    said = capsys.readouterr().err
    assert all(sign.isprintable() for line in said.split("\n") for sign in line), repr(said)
    assert f"{MARKUP} forged" in said


def evaluated() -> list[Table]:
    figures = ("accuracy", "mean_class_recall", "worst_site_accuracy", "worst_site_mean_class_recall")
    result: dict[str, Any] = {"after_task": 1, **dict.fromkeys((*figures, "calibration_error"), 1.0)}
    result |= {"sites": {EVIL: {"images": 1, **dict.fromkeys(figures, 1.0)}}, "failures": {EVIL: EVIL}}
    result |= {"recall": {EVIL: 1.0}, "leading_metric": "mean_class_recall"}
    return list(evaluation_tables(result))


def test_what_sites_can_bring() -> None:
    told = {EVIL: {"classes": {EVIL: 10}}, "other": {"error": EVIL}, "third": {"classes": {EVIL: EVIL}}}
    output = printed(classes_table(told, ()))
    harmless(output)
    assert output.count(SHOWN) == 4
    harmless(printed(classes_table(told, (EVIL,))))


def test_an_evaluation() -> None:
    for table in evaluated():
        harmless(printed(table))


def test_corrections(capsys: pytest.CaptureFixture[str]) -> None:
    result: dict[str, Any] = {"corrected": [EVIL], "nothing_to_correct": [EVIL], "failures": {EVIL: EVIL}}
    for line in correction_lines(result | {"model_written": True}):
        server_cli.console.say(line)
    harmless(capsys.readouterr().out)


STARTED: dict[str, Any] = {
    **{"event": "run_started", "time": 1000.0, "name": EVIL, "method": EVIL, "dataset": EVIL, "sites": 1},
    **{"tasks": [[EVIL]], "plan": [{"task": 0, "stage": EVIL, "round": 0, "rounds": 1}], "resumed_at": 0},
    "site_names": (EVIL,),
}
FAILURE = {"site": 0, "error": EVIL, "code": 1}
EVENTS: list[dict[str, Any]] = [
    STARTED,
    {"event": "step_started", "time": 1001.0, "step": 0, **STARTED["plan"][0]},
    {"event": "waiting", "time": 1001.0, "sites": [0]},
    {"event": "asking_again", "time": 1002.0, "step": 0, "failures": [FAILURE]},
    {
        **{"event": "step_finished", "time": 1003.0, "step": 0, **STARTED["plan"][0], "seconds": 1.0, "bytes_up": 1},
        **{"bytes_down": 1, "sites": [{"site": 0, "abstained": True, "metrics": {}}], "failures": [FAILURE]},
    },
    {"event": "run_failed", "time": 1004.0, "message": EVIL},
]


def test_the_log_of_a_run() -> None:
    file = io.StringIO()
    with ProgressView(Terminal(file=file), live=False) as view:
        for event in EVENTS:
            view.update(event)
    harmless(file.getvalue())
    assert file.getvalue().count("\n") == 5


def test_the_panel_of_a_run() -> None:
    with ProgressView(Terminal(file=io.StringIO()), live=False) as view:
        for event in EVENTS:
            view.update(event)
            harmless(printed(progress_panel(view._state, 1005.0)))


def test_the_live_panel_of_a_run() -> None:
    file = io.StringIO()
    with ProgressView(Terminal(file=file, force_terminal=True, width=400, height=50), live=True) as view:
        for event in EVENTS:
            view.update(event)
    assert MARKUP in file.getvalue()
    assert not any(signs in file.getvalue() for signs in (CLEAR, "\x1b]", "\x07", REVERSED, "\x9b"))


def test_results() -> None:
    numbers = ("average_incremental_accuracy", "last_accuracy", "forgetting", "backward_transfer", "mean_class_recall")
    counts = ("macs_per_image", "deployed_parameters", "trainable_parameters", "bytes_up", "bytes_down", "rounds")
    summary: dict[str, Any] = dict.fromkeys((*numbers, *counts, "worst_site_accuracy", "seconds", "seed"), 1)
    summary |= {"name": EVIL, "method": EVIL, "dataset": EVIL, "status": EVIL, "tasks": 1, "sites": 1}
    harmless(printed(final_table(summary | {"accuracy_after_tasks": [1.0], "site_accuracies": [1.0]})))


def test_the_status_of_runs(capsys: pytest.CaptureFixture[str]) -> None:
    run = RunStatus(Path("/runs") / EVIL, EVENTS, submitted=1000.0, flower="")
    overview = Overview([run])
    harmless(printed(runs_table(overview, 1005.0)))
    harmless(printed(run_view(run, 1005.0)))
    for words in remarks(overview):
        Terminal(width=400).say(words)
    harmless(capsys.readouterr().out)


@pytest.mark.parametrize("show", [lambda text: text, lambda text: Table(text, title=text)], ids=["line", "table"])
def test_a_forgotten_name_gets_no_further_than_the_terminal(show: Callable[[str], RenderableType]) -> None:
    output = printed(show(f"{CLEAR}{TITLE}{REVERSED}\x9b\x7f\r"))
    assert all(sign.isprintable() for line in output.split("\n") for sign in line), repr(output)


def test_a_data_flow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.report.data_flow.data_flow", lambda source: f"# {CLEAR}{TITLE}\n{REVERSED}{MARKUP}\n")
    shown = CliRunner().invoke(server_cli.app, ["data-flow", str(tmp_path)])
    assert shown.output == f"# ?[2J?]0;x?\n?{MARKUP}\n\n"
