"""What a run's log tells of the run and of each of its sites, and how it stands where the log has no end."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median

import pytest
from small_runs import Finished, events
from status_runs import (
    FAILURE,
    SITES,
    START,
    TASKS,
    Event,
    abstained,
    completed,
    done,
    failed,
    first_task,
    started,
    trained,
    waiting,
    write_run,
)

from dynammo_core.support.errors import RunError
from server.run_directory.directory import LATEST
from server.run_directory.flower_run import FLOWER_RUN
from server.watch.status import RunStatus, age

RUN = Path("/consortium/runs/skin-1")


def test_each_site_has_its_own_numbers() -> None:
    run = RunStatus(RUN, first_task())
    first, second, third = run.sites
    assert [site.name for site in run.sites] == list(SITES)
    assert [site.state for site in run.sites] == ["answered", "waited for", "answered"]
    assert (first.answered, first.seconds) == (START + 30, 1.5)  # testing, the last step that it answered
    assert first.speeds == [100, 50]  # 200 images in 2 and in 4 s; testing is no training
    assert (first.speed, second.speed, third.speed) == (75, 20, None)
    assert [site.accuracy for site in run.sites] == [90.0, 52.5, None]
    assert [site.abstained for site in run.sites] == [0, 0, 2]
    assert [site.failures for site in run.sites] == [0, 2, 0]  # asked twice in the second step
    assert [site.error for site in run.sites] == ["", "NoAnswerBeforeDeadline, code 5", ""]


def test_failed_site_keeps_its_last_answer_and_is_no_longer_waited_for_once_others_are_heard() -> None:
    at_failure = RunStatus(RUN, first_task()[:6]).sites[1]
    assert (at_failure.state, at_failure.answered, at_failure.seconds) == ("failed", START + 10, 5.0)
    asked = {"event": "asked", "time": START + 40, "step": 3, "sites": [0, 2]}
    assert RunStatus(RUN, [*first_task(), asked]).sites[1].state == "not connected"
    idle = RunStatus(RUN, [*first_task(), done(3, START + 40, [abstained(0)])]).sites[0]
    assert (idle.state, idle.answered, idle.seconds, idle.abstained) == ("abstained", START + 40, 1.5, 1)
    partly = RunStatus(RUN, [*first_task()[:-1], waiting(3, START + 32, 1, 2), waiting(3, START + 33, 2)])
    assert [site.state for site in partly.sites] == ["answered", "connected", "waited for"]


def test_who_works_since_when_and_who_has_answered_is_known_within_a_step() -> None:
    log = [
        *first_task(),
        {"event": "asked", "time": START + 40, "step": 3, "sites": [0, 1, 2]},
        {"event": "answers", "time": START + 45, "step": 3, "answered": 1, "asked": 3, "sites": [2], "failed": [1]},
    ]
    run = RunStatus(RUN, log, submitted=BEFORE, flower="running")
    assert [(site.state, site.since) for site in run.sites] == [
        ("working", START + 40),
        ("failed", None),
        ("answered", None),
    ]
    fields = run.as_fields(START + 50)
    assert (fields["working"], fields["sites_answered"], fields["sites_asked"]) == (["hospital-a"], 1, 3)
    assert fields["sites"][0]["working_since"] == START + 40
    forgotten = {"event": "forgotten", "time": START + 60, "correction": 1, "answered": 2, "corrected": 0}
    late = {**FAILURE, "site": 0, "code": 0, "error": "NoAnswerBeforeDeadline"}
    after = RunStatus(RUN, [*log, {**forgotten, "failures": [late]}])
    assert (after.sites[0].state, after.progress.working) == ("failed", {})


def test_failure_that_ended_the_run_stands_beside_its_site() -> None:
    ended = {"event": "run_failed", "time": START + 50, "message": "task 2: 1 of 3 sites answered."}
    ended["failures"] = [
        {"site": 0, "code": 108, "error": "NotApproved"},
        {**FAILURE, "code": 102, "error": "DataError"},
    ]
    log = [{**started(START), "approval": "3f2a" * 16}, *first_task()[1:], ended]
    run = RunStatus(RUN, log, submitted=BEFORE, flower="finished:failed")
    assert [site.state for site in run.sites] == ["failed", "failed", "answered"]
    assert run.sites[0].error == "NotApproved, code 108"
    assert "skin (hash 3f2a3f2a3f2a3f2a), or not for another run: they type `dynammo-site approve`" in run.sites[0].ask
    assert "`dynammo-site doctor`" in run.sites[1].ask
    for words in ("hospital-a (NotApproved, code 108): nobody there", "hospital-b (DataError, code 102)", RESUME[1:]):
        assert words in run.note
    assert len(run.progress.failures) == 4


def test_fields_are_json_and_count_from_one() -> None:
    run = RunStatus(RUN, first_task(), submitted=START - 5, flower="running")
    fields = json.loads(json.dumps(run.as_fields(START + 42)))
    sites = fields.pop("sites")
    assert fields == {
        "name": "skin-1",
        "state": "running",
        "note": "",
        "method": "dynammo",
        "dataset": "moles",
        "started": START,
        "last_event": START + 32,
        # Three steps to come, each taken for 10 s as all before; the one in hand began 11 s ago.
        "seconds_left": 20.0,
        "task": 2,
        "tasks": 2,
        "classes": TASKS[1],
        "stage": "adapt",
        "round": 1,
        "rounds": 2,
        "steps_finished": 3,
        "steps": 6,
        "sites_answered": 0,
        "sites_asked": 0,
        "waiting_for": ["hospital-b"],
        "working": [],
        "held_back": "",
        "accuracy": 71.25,
        "accuracy_after_tasks": [71.25],
        "mean_class_recall": 61.5,
        "mean_class_recall_after_tasks": [61.5],
        "failures": [
            "hospital-b (TimeoutError, code 5) in task 1 adapt 2/2, asked again",
            "hospital-b (NoAnswerBeforeDeadline, code 5) in task 1 adapt 2/2",
        ],
    }
    assert sites[1] == {
        "name": "hospital-b",
        "state": "waited for",
        "last_answer": START + 30,
        "seconds_since_answer": 12.0,
        "seconds_of_last_step": 2.5,
        "images_per_second": 20.0,
        "accuracy": 52.5,
        "mean_class_recall": 33.5,
        "abstained": 0,
        "failures": 2,
        "last_error": "NoAnswerBeforeDeadline, code 5",
        "ask": "it is not connected: ask whether `dynammo-site start` is running",
        "working_since": None,
    }


RESUME = f"continue with: dynammo-server run {RUN}/config.yaml"
UNKNOWN = "its log does not say how it ended, and Flower does not say whether it is still running"
BEFORE, AFTER = START - 5, START + 100  # everything that is heard


@pytest.mark.parametrize(
    ("log", "submitted", "flower", "state", "note"),
    [
        (completed(), BEFORE, "running", "completed", ""),  # Flower's process takes a moment to end
        (completed(), None, None, "completed", ""),
        (failed(), BEFORE, "finished:failed", "failed", f"task 2: no <quorum>. C{RESUME[1:]}"),
        (first_task(), BEFORE, "running", "running", ""),
        (first_task(), BEFORE, None, "unfinished", UNKNOWN),
        (first_task(), None, None, "unfinished", UNKNOWN),
        (first_task(), BEFORE, "finished:failed", "dead", RESUME),
        (first_task(), BEFORE, "finished:completed", "dead", RESUME),
        (first_task(), BEFORE, "finished:unknown", "dead", RESUME),
        (first_task(), BEFORE, "finished:stopped", "stopped", RESUME),
        ([], BEFORE, "pending", "starting", ""),
        ([], BEFORE, "finished:failed", "dead", RESUME),
        # Gone on with, and not heard of since.
        (completed(), AFTER, "starting", "starting", ""),
        (failed(), AFTER, "running", "starting", ""),
        (failed(), AFTER, "finished:failed", "dead", RESUME),
        (failed(), AFTER, None, "unfinished", UNKNOWN),
        ([*failed(), started(AFTER + 1)], AFTER, "running", "running", ""),
    ],
)
def test_state(log: list[Event], submitted: float | None, flower: str | None, state: str, note: str) -> None:
    run = RunStatus(RUN, log, submitted=submitted, flower=flower)
    assert (run.state, run.note) == (state, note)
    assert run.goes_on is (state in ("starting", "running", "unfinished"))


def test_ended_run_waits_for_nobody_and_has_no_time_left() -> None:
    run = RunStatus(RUN, first_task(), submitted=BEFORE, flower="finished:failed")
    fields = run.as_fields(START + 5000)
    assert (fields["waiting_for"], fields["seconds_left"]) == ([], None)
    assert run.moment(START + 5000) == START + 32  # its clock stands
    assert RunStatus(RUN, first_task()).moment(START + 5000) == START + 5000


def test_accuracy_is_that_after_the_last_task() -> None:
    second = {"event": "task_evaluated", "time": START + 80, "task": 1, "accuracy": 60.0, "site_accuracies": [50.0]}
    run = RunStatus(RUN, [*first_task(), second])
    assert (run.accuracy, run.as_fields(START)["accuracy_after_tasks"]) == (60.0, [71.25, 60.0])
    assert [site.accuracy for site in run.sites] == [50.0, 52.5, None]
    # An earlier version logged no mean class recall by site, and that of all only where classes were uneven.
    assert (run.recall, run.as_fields(START)["mean_class_recall_after_tasks"]) == (None, [61.5, None])


def test_path_in_a_command_is_quoted() -> None:
    run = RunStatus(Path("/my runs/skin"), first_task(), submitted=BEFORE, flower="finished:failed")
    assert run.note == "continue with: dynammo-server run '/my runs/skin/config.yaml'"


def test_a_run_with_a_checkpoint_is_resumed_in_its_consortium(tmp_path: Path) -> None:
    directory = tmp_path / "skin"
    (directory / "checkpoints").mkdir(parents=True)
    (directory / "checkpoints" / LATEST).touch()
    (directory / FLOWER_RUN).write_text('{"run-id": 1, "consortium": "/my consortium"}')
    run = RunStatus(directory, first_task(), submitted=BEFORE, flower="finished:stopped")
    assert run.note == f"continue with: dynammo-server resume {directory} --folder '/my consortium'"
    (directory / "checkpoints" / LATEST).unlink()
    run = RunStatus(directory, first_task(), submitted=BEFORE, flower="finished:stopped")
    assert run.note == f"continue with: dynammo-server run {directory}/config.yaml --folder '/my consortium'"


def test_site_that_joins_has_a_row_and_the_others_keep_theirs() -> None:
    log = [*completed(), started(AFTER, (*SITES, "hospital-d"), 3), done(3, AFTER + 10, [trained(3, 10, 1.0)])]
    run = RunStatus(RUN, log)
    assert [site.name for site in run.sites] == [*SITES, "hospital-d"]
    assert run.sites[0].speeds == [100, 50]
    assert run.sites[3].answered == AFTER + 10
    assert run.started == START


def test_run_that_has_said_nothing() -> None:
    run = RunStatus(RUN, [])
    assert (run.task, run.accuracy, run.sites, run.started, run.heard) == ("-", None, [], None, None)
    fields = run.as_fields(START)
    assert (fields["stage"], fields["classes"], fields["seconds_left"]) == (None, [], None)


def test_real_run(finished: Finished) -> None:
    path = finished("dynammo").path
    run, summary = RunStatus.read(path), finished("dynammo").summary
    assert (run.state, run.task, run.accuracy) == ("completed", "2/2", summary["last_accuracy"])
    assert [site.accuracy for site in run.sites] == summary["site_accuracies"]
    assert run.recall == summary["mean_class_recall"]
    assert [site.recall for site in run.sites] == summary["site_mean_class_recalls"]
    assert [site.name for site in run.sites] == ["site 0", "site 1", "site 2"]
    steps = events(path, "step_finished")
    for index, site in enumerate(run.sites):
        own = [entry for step in steps for entry in step["sites"] if entry["site"] == index]
        assert site.abstained == sum(entry["abstained"] for entry in own)
        rates = [one["samples"] / one["metrics"]["seconds"] for one in own if "loss" in one["metrics"]]
        assert site.speed == pytest.approx(median(rates))
        assert site.answered == steps[-1]["time"]


def test_log_cut_off_in_a_line_tells_what_it_can(tmp_path: Path) -> None:
    write_run(tmp_path, first_task())
    log = tmp_path / "events.jsonl"
    log.write_bytes(log.read_bytes() + b'{"event": "answ')
    assert RunStatus.read(tmp_path).sites[1].state == "waited for"


@pytest.mark.parametrize(
    "event",
    [
        {"event": "step_finished", "time": 1.0},
        {"event": "run_started", "time": 1.0, "resumed_at": 0, "sites": "three"},
        {"event": "waiting", "step": 0, "sites": [0]},
        {"event": "waiting", "time": 1.0, "step": 0, "sites": [0]},
    ],
)
def test_log_of_another_program_is_refused(tmp_path: Path, event: Event) -> None:
    with pytest.raises(RunError, match=r"events\.jsonl does not describe a run"):
        RunStatus.read(write_run(tmp_path, [event]))


@pytest.mark.parametrize(
    ("seconds", "words"), [(-1, "0:00:00"), (83, "0:01:23"), (172_799, "1 day, 23:59:59"), (172_800, "2 days")]
)
def test_age(seconds: float, words: str) -> None:
    assert age(START, START + seconds) == words
