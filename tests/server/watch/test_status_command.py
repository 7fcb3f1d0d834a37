"""`dynammo-server status` as an operator sees it: tables, a live view, JSON, and what it refuses."""

from __future__ import annotations

import http.client
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from click.testing import Result
from rich.console import Console
from rich.text import Text
from small_runs import Finished
from status_runs import SITES, START, append, completed, failed, first_task, write_run
from typer.testing import CliRunner

from server.consortium.consortium import make_consortium
from server.consortium.settings import FILE_NAME
from server.watch.lookout import Lookout, Overview
from server.watch.status import RunStatus
from server.watch.status_command import run_view, runs_table, status, watch

app = typer.Typer(pretty_exceptions_enable=False)
app.command()(status)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A consortium whose SuperLink does not run, on a port that nobody has."""
    return make_consortium(tmp_path / "consortium", ["localhost"], port=9, listen="127.0.0.1").folder


def invoke(folder: Path, *words: str) -> Result:
    return CliRunner().invoke(app, [*words, "--folder", str(folder)])


def text_of(view: object, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(view)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_table_of_all_runs(folder: Path) -> None:
    write_run(folder / "runs" / "skin-1", completed())
    write_run(folder / "runs" / "skin-[red]", failed())
    done = invoke(folder)
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["class"]
    assert lines[1].split() == ["run", "state", "task", "accuracy", "recall", "started", "last", "event"]
    assert lines[2].split()[:7] == ["skin-1", "completed", "2/2", "71.2", "%", "61.5", "%"]
    assert lines[3].split()[:7] == ["skin-[red]", "failed", "2/2", "71.2", "%", "61.5", "%"]
    assert lines[4].startswith("skin-[red] failed: task 2: no <quorum>. Continue with: dynammo-server run ")
    assert len(lines) == 5  # nobody asks the SuperLink about runs that have ended


def test_no_superlink_answers(folder: Path) -> None:
    """The real question, by Flower's own command line, to nobody."""
    write_run(folder / "runs" / "skin", first_task(), 17)
    done = invoke(folder)
    assert done.exit_code == 0
    assert done.stdout.splitlines()[2].split()[:2] == ["skin", "unfinished"]
    assert "This shows only what the files say: " in done.stdout
    assert "127.0.0.1:9" in done.stdout
    assert "dynammo-server start" in done.stdout


def test_no_runs_yet(folder: Path) -> None:
    assert invoke(folder).stdout == "There are no runs yet.\n"
    assert json.loads(invoke(folder, "--json").stdout)["runs"] == []


def test_details_of_a_run() -> None:
    run = RunStatus(Path("/runs/skin"), first_task(), submitted=START - 5, flower="running")
    lines = text_of(run_view(run, START + 62)).splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert any("waiting for hospital-b" in line for line in lines)
    # The last answers came 32 s ago.
    assert [line.split() for line in lines[-5:-1]] == [
        ["hospital-a", "answered", "0:00:32", "1.5", "s", "75.0", "90.0", "%", "85.0", "%", "0", "0"],
        ["hospital-b", "waited", "for", "0:00:32", "2.5", "s", "20.0", "52.5", "%", "33.5", "%", "0", "2"],
        ["<b", 'id="x">&', "answered", "0:00:32", "0.5", "s", "-", "-", "-", "2", "0"],
        ["hospital-b", "last", "failed", "with", "NoAnswerBeforeDeadline,", "code", "5"],
    ]
    assert lines[-1] == "hospital-b: it is not connected: ask whether `dynammo-site start` is running"


def test_ended_run_shows_the_time_of_its_end() -> None:
    run = RunStatus(Path("/runs/skin"), first_task(), submitted=START - 5, flower="finished:failed")
    text = text_of(run_view(run, START + 100_000))
    assert "0:00:32 elapsed" in text
    assert "left" not in text
    assert "waiting for" not in text
    assert "Ended      dead" in text


def test_command_to_go_on_is_not_wrapped(folder: Path) -> None:
    run = write_run(folder / "runs" / ("skin-" + "x" * 100), failed(), None)
    done = invoke(folder, str(run))
    command = f"dynammo-server run {run}/config.yaml"
    assert f"{run.name} failed: task 2: no <quorum>. Continue with: {command}" in done.stdout.splitlines()


@pytest.mark.parametrize("width", [60, 80, 200])
def test_tables_fit_their_terminal(width: int) -> None:
    log = first_task()
    log[0]["site_names"] = ["a" * 63, *SITES[1:]]
    run = RunStatus(Path("/runs") / ("skin" * 20), log)
    for view in (run_view(run, START + 62), runs_table(Overview([run]), START + 62)):
        text = text_of(view, width)
        assert max(len(line) for line in text.splitlines()) <= width
        assert width < 80 or "…" not in text.split("╯")[-1]  # a long name is folded, not cut


def test_json(folder: Path, finished: Finished) -> None:
    path = finished("dynammo").path
    told = json.loads(invoke(folder, str(path), "--json").stdout)
    (run,) = told["runs"]
    assert (run["name"], run["state"]) == (path.name, "completed")
    assert run["accuracy"] == finished("dynammo").summary["last_accuracy"]
    assert run["steps_finished"] == run["steps"]


def test_live_view_follows_the_run_to_its_end(tmp_path: Path) -> None:
    run = write_run(tmp_path / "skin", first_task(), 17)
    coming = [{"event": "answers", "time": START + 40, "step": 3, "answered": 2, "asked": 3}, completed()[-1]]
    looks = 0

    def directories() -> list[Path]:
        nonlocal looks
        looks += 1
        if looks > 2 and coming:  # the first look takes two, before and after Flower is asked
            append(run, coming.pop(0))
        return [run]

    console = Console(file=io.StringIO(), width=80, height=40, force_terminal=True)
    watch(Lookout(directories, lambda: {17: ("running", "")}), console)
    assert isinstance(console.file, io.StringIO)
    drawn = Text.from_ansi(console.file.getvalue()).plain
    places = [drawn.index(words) for words in ("waiting for hospital-b", "2/3 answered", "Ended      completed")]
    assert places == sorted(places)
    assert not coming


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "is not a run directory"),
        (["--serve", "0", "--json"], "--serve cannot be combined with"),
        (["--serve", "0", "--once"], "--serve cannot be combined with"),
    ],
)
def test_refusals(folder: Path, words: list[str], message: str) -> None:
    done = invoke(folder, *words)
    assert done.exit_code == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_no_consortium(tmp_path: Path) -> None:
    done = invoke(tmp_path)
    assert done.exit_code == 1
    assert FILE_NAME in done.stderr


SCRIPT = "import typer; from server.watch.status_command import status; typer.run(status)"


def test_page_is_served_until_ctrl_c(folder: Path) -> None:
    write_run(folder / "runs" / "skin", completed())
    command = [sys.executable, "-c", SCRIPT, "--serve", "0", "--folder", str(folder)]
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "COLUMNS": "80"}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout
            url = process.stdout.readline().split()[0]
            port = int(url.rsplit(":", 1)[1].strip("/"))
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            connection.request("GET", "/run/skin")
            assert "completed" in connection.getresponse().read().decode()
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=30)
        finally:
            process.kill()
    assert (process.returncode, errors) == (0, "")


def test_attempts_that_another_one_replaced_are_listed_without_advice(folder: Path) -> None:
    for name in ("skin-1", "skin-1.1", "skin-1.2", "skin-2.1"):
        write_run(folder / "runs" / name, failed())
    lines = invoke(folder).stdout.splitlines()
    assert [line.split()[0] for line in lines if "Continue with" in line] == ["skin-1", "skin-2.1"]
    assert sum(" failed " in line for line in lines) == 4


def test_why_the_gate_holds_a_model_back_is_never_cut(folder: Path) -> None:
    broken = [{"bound": "retention", "points": 89.5, "limit": 3.0, "site": 0, "label": None}]
    log = [*first_task(), {"event": "gate_judged", "time": START, "task": 1, "deployed": 0, "broken": broken}]
    log[0]["site_names"] = ["the-general-hospital-of-the-county-of-the-lakes", *log[0]["site_names"][1:]]
    run = RunStatus(folder / "runs" / "skin", log)
    assert "of-the-lakes" in "".join(text_of(run_view(run, START)).split())
