"""Looking at many runs again and again: what is read, what is asked, and what one broken run does to the others."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from status_runs import START, append, completed, failed, first_task, write_run

from dynammo_core.support.errors import RunError
from server.run_directory.flower_run import FLOWER_RUN
from server.watch import lookout as lookout_module
from server.watch.lookout import Lookout, run_directories


class SuperLink:
    """Answers as `Control.runs` does, and counts the questions."""

    def __init__(self, *runs: tuple[int, str]) -> None:
        self.runs = list(runs)
        self.asked = 0
        self.answers = True

    def __call__(self) -> dict[int, tuple[str, str]]:
        self.asked += 1
        if not self.answers:
            raise RunError("the SuperLink at 127.0.0.1:1 does not answer")
        return {run: (status, "") for run, status in self.runs}


def states(lookout: Lookout) -> dict[str, str]:
    return {run.directory.name: run.state for run in lookout.look().runs}


def test_the_last_heard_of_comes_first_and_flower_decides_where_logs_do_not(tmp_path: Path) -> None:
    for name, flower in (("runs-on", 17), ("died", 3), ("ended-by-hand", 4), ("forgotten", 99)):
        write_run(tmp_path / name, first_task(), flower)
    write_run(tmp_path / "succeeded", completed(), 2)
    write_run(tmp_path / "gave-up", failed(), 1)
    write_run(tmp_path / "simulated", first_task()[:3])
    superlink = SuperLink((17, "running"), (3, "finished:failed"), (4, "finished:stopped"), (1, "finished:failed"))
    found = states(Lookout(lambda: run_directories(tmp_path), superlink))
    assert list(found.items()) == [
        ("succeeded", "completed"),  # heard of 90 s after the start,
        ("gave-up", "failed"),  # after 40,
        ("died", "dead"),  # and these after 32
        ("ended-by-hand", "stopped"),
        ("forgotten", "dead"),
        ("runs-on", "running"),
        ("simulated", "unfinished"),  # after 10
    ]
    assert superlink.asked == 1


def test_nobody_is_asked_about_runs_that_have_ended(tmp_path: Path) -> None:
    write_run(tmp_path / "a", completed(), 1)
    write_run(tmp_path / "b", first_task())  # never handed to Flower
    superlink = SuperLink()
    overview = Lookout(lambda: run_directories(tmp_path), superlink).look()
    assert (superlink.asked, overview.silence) == (0, "")


def test_silent_superlink_is_told_and_asked_again_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path / "a", first_task(), 17)
    superlink = SuperLink((17, "finished:failed"))
    superlink.answers = False
    lookout = Lookout(lambda: run_directories(tmp_path), superlink)
    overview = lookout.look()
    assert overview.silence == "the SuperLink at 127.0.0.1:1 does not answer."
    assert [run.state for run in overview.runs] == ["unfinished"]
    superlink.answers = True
    assert states(lookout) == {"a": "unfinished"}  # too early for another question
    assert superlink.asked == 1
    monkeypatch.setattr(lookout_module, "ASK_SECONDS", 0.0)
    wait_until(lambda: states(lookout) == {"a": "dead"})
    assert lookout.look().silence == ""


def test_run_submitted_since_the_question_is_not_dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_run(tmp_path / "a", first_task(), 17)
    superlink = SuperLink((17, "finished:failed"))
    write_run(tmp_path / "b", first_task(), 16)  # its answer is waited for
    lookout = Lookout(lambda: run_directories(tmp_path), superlink)
    assert states(lookout) == {"a": "dead", "b": "dead"}
    write_run(run, [], 18, submitted=time.time() + 1)
    assert states(lookout)["a"] == "unfinished"
    superlink.runs.append((18, "pending"))
    monkeypatch.setattr(lookout_module, "ASK_SECONDS", 0.0)
    wait_until(lambda: states(lookout)["a"] == "starting")
    append(run, first_task()[0] | {"time": time.time() + 2})
    assert states(lookout)["a"] == "running"


def test_run_that_ends_while_flower_is_asked_has_not_died(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", first_task(), 17)

    def ending() -> dict[int, tuple[str, str]]:
        append(run, completed()[-1])
        return {17: ("finished:completed", "")}

    assert states(Lookout(lambda: [run], ending)) == {"a": "completed"}


def test_files_are_read_again_only_when_they_change(tmp_path: Path) -> None:
    for name in "ab":
        write_run(tmp_path / name, first_task())
    lookout = Lookout(lambda: run_directories(tmp_path), SuperLink())
    before = {run.directory.name: run for run in lookout.look().runs}
    append(tmp_path / "b", {"event": "answers", "time": START + 33, "step": 3, "answered": 2, "asked": 3})
    after = {run.directory.name: run for run in lookout.look().runs}
    assert after["a"] is before["a"]
    assert (before["b"].progress.answered, after["b"].progress.answered) == (0, 2)
    (tmp_path / "b" / "events.jsonl").unlink()
    (tmp_path / "b" / "config.yaml").unlink()
    assert states(lookout) == {"a": "unfinished"}


def test_one_broken_run_does_not_hide_the_others(tmp_path: Path) -> None:
    write_run(tmp_path / "good", completed())
    write_run(tmp_path / "foreign", [{"event": "step_finished"}])
    write_run(tmp_path / "no-id", first_task(), 1)
    (tmp_path / "no-id" / FLOWER_RUN).write_text("{")
    (write_run(tmp_path / "binary", completed()) / "config.yaml").write_bytes(b"\xff\xfe")
    (tmp_path / "a file").write_text("")
    (tmp_path / "empty").mkdir()
    runs = Lookout(lambda: run_directories(tmp_path), SuperLink()).look().runs
    assert {run.directory.name: run.state for run in runs} == {
        "good": "completed",
        "foreign": "unreadable",
        "no-id": "unfinished",
        "binary": "unreadable",
    }
    assert "does not describe a run" in next(run.note for run in runs if run.directory.name == "foreign")


def test_no_folder_of_runs_yet(tmp_path: Path) -> None:
    assert run_directories(tmp_path / "runs") == []


def wait_until(true: Callable[[], bool], seconds: float = 20.0) -> None:
    limit = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < limit
        time.sleep(0.02)
