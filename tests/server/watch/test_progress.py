"""The displays of a run, fed by hand-made events: what they say, where they fit, and the time they foretell."""

from __future__ import annotations

import io
import os
import select
from typing import Any

import pytest
from rich.console import Console
from rich.text import Text

from dynammo_core.data.decoded.progress import Decoding
from server.watch.progress import ProgressView, final_table
from server.watch.run_state import RunState

STAGES = (("adapt", 2), ("evaluate", 1))
TASKS = [["naevus", "melanoma"], ["wart [red]x[/red]", "Größe"]]
PLAN = [
    {"task": task, "stage": stage, "round": index, "rounds": rounds}
    for task in range(2)
    for stage, rounds in STAGES
    for index in range(rounds)
]
SUMMARY = {
    "name": "skin",
    "method": "dynammo",
    "dataset": "moles",
    "seed": 1993,
    "tasks": 2,
    "sites": 3,
    "average_incremental_accuracy": 65.04,
    "last_accuracy": 60.0,
    "forgetting": 15.0,
    "backward_transfer": -15.0,
    "mean_class_recall": 61.25,
    "worst_site_accuracy": None,
    "accuracy_after_tasks": [70.1, 60.0],
    "site_accuracies": [80.0, 40.0, None],
    "macs_per_image": 48_213_504,
    "deployed_parameters": 5_012_333,
    "trainable_parameters": 1_628_000,
    "bytes_up": 12_000_000,
    "bytes_down": 246_300_000,
    "rounds": 6,
    "seconds": 83.4,
    "status": "completed",
}
Event = dict[str, Any]


def started(at: int = 0, names: tuple[str, ...] = ()) -> Event:
    return {
        "event": "run_started",
        "time": 1000.0,
        "name": "skin",
        "method": "dynammo",
        "dataset": "moles",
        "sites": 3,
        "tasks": TASKS,
        "plan": PLAN,
        "resumed_at": at,
        **({"site_names": names} if names else {}),
    }


def begin(step: int, time: float) -> Event:
    return {"event": "step_started", "time": time, "step": step, **PLAN[step]}


def end(step: int, time: float, seconds: float, abstained: tuple[int, ...] = (), failed: tuple[int, ...] = ()) -> Event:
    return {
        "event": "step_finished",
        "time": time,
        "step": step,
        **PLAN[step],
        "seconds": seconds,
        "bytes_up": 1_000_000,
        "bytes_down": 2_500_000,
        "sites": [{"site": site, "abstained": site in abstained} for site in range(3) if site not in failed],
        "failures": [{"site": site, "code": 106, "error": "MemoryStoreError"} for site in failed],
    }


def first_task() -> list[Event]:
    """Adapting takes 10 and 14 s, evaluating 2 s; site 2 abstains, site 0 fails."""
    return [
        started(),
        begin(0, 1000.0),
        end(0, 1010.0, 10.0, abstained=(2,)),
        begin(1, 1010.0),
        end(1, 1024.0, 14.0, failed=(0,)),
        begin(2, 1024.0),
        {"event": "answers", "time": 1025.0, "step": 2, "answered": 2, "asked": 3},
        end(2, 1026.0, 2.0),
        {"event": "task_evaluated", "time": 1026.0, "task": 0, "accuracy": 70.1, "site_accuracies": [90.0, 50.0, None]},
    ]


def state_after(events: list[Event]) -> RunState:
    state = RunState()
    for event in events:
        state.update(event)
    return state


def log_of(events: list[Event]) -> list[str]:
    file = io.StringIO()
    with ProgressView(Console(file=file, width=20)) as view:
        for event in events:
            view.update(event)
    return file.getvalue().splitlines()


def panel_of(events: list[Event], now: float, width: int = 80) -> str:
    """The last drawing of the live panel."""
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=True, color_system="truecolor")
    with ProgressView(console, live=True, clock=lambda: now) as view:
        for event in events:
            view.update(event)
    return Text.from_ansi("╭" + file.getvalue().split("╭")[-1]).plain


def test_time_left_is_the_mean_of_the_same_stage_over_the_steps_to_come() -> None:
    events = first_task()
    assert state_after(events[:2]).seconds_left(1001.0) is None
    # After the first step: adapt 10, and evaluate as long as a mean step: 10; 5 steps to come.
    assert state_after(events[:3]).seconds_left(1010.0) == pytest.approx(50)
    # After the task: two adapt steps of (10 + 14) / 2, one evaluation of 2.
    assert state_after(events).seconds_left(1026.0) == pytest.approx(26)
    # The step in hand has used 5 of its 12 seconds; later it overruns them, and the other two remain.
    in_hand = state_after([*events, begin(3, 1030.0)])
    assert in_hand.seconds_left(1035.0) == pytest.approx(21)
    assert in_hand.seconds_left(1099.0) == pytest.approx(14)


def test_log_has_a_line_for_each_finished_step() -> None:
    assert log_of(first_task()) == [
        "skin: dynammo on moles, 3 sites, 4 classes in 2 tasks, 6 steps",
        "[1/6] task 1 adapt 1/2, 3/3 sites, 10.0 s, 3.5 MB, 0:00:50 left; abstained: site 2",
        # Two adapt and two evaluate steps to come, all taken for 12 s; then two adapt steps of 12 s and one of 2 s.
        "[2/6] task 1 adapt 2/2, 2/3 sites, 14.0 s, 3.5 MB, 0:00:48 left; failed: site 0 (MemoryStoreError, code 106)",
        "[3/6] task 1 evaluate 1/1, 3/3 sites, 2.0 s, 3.5 MB, 0:00:26 left",
        "task 1/2 learnt, accuracy 70.1 % (sites: 50.0 to 90.0 %)",
    ]


HOSPITALS = ("hospital-a", "hospital-b", "hospital-c")
ASKED_AGAIN = {"site": 1, "code": 5, "error": "TimeoutError"}


def test_log_calls_sites_by_their_names() -> None:
    lines = log_of(
        [
            started(names=HOSPITALS),
            {"event": "waiting", "time": 1000.0, "step": 0, "sites": [1, 2]},
            {"event": "waiting", "time": 1001.0, "step": 0, "sites": [1]},
            {"event": "asking_again", "time": 1002.0, "step": 0, "failures": [ASKED_AGAIN]},
            end(0, 1010.0, 10.0, abstained=(1, 2), failed=(0,)),
        ]
    )
    assert lines[1:4] == [
        "waiting for hospital-b, hospital-c",
        "waiting for hospital-b",
        "asking again: hospital-b (TimeoutError, code 5)",
    ]
    assert lines[4].endswith("abstained: hospital-b, hospital-c; failed: hospital-a (MemoryStoreError, code 106)")
    simulated = log_of([started(names=("site 0", "site 1", "site 2")), end(0, 1010.0, 10.0, abstained=(0, 2))])
    assert simulated[1].endswith("abstained: sites 0, 2")


def test_panel_says_who_is_waited_for_as_long_as_nothing_else_is_heard() -> None:
    waiting = {"event": "waiting", "time": 1001.0, "step": 0, "sites": [1]}
    events = [started(names=HOSPITALS), begin(0, 1000.0), waiting]
    assert "Sites      waiting for hospital-b " in panel_of(events, 1002.0)
    answers = {"event": "answers", "time": 1003.0, "step": 0, "answered": 1, "asked": 3}
    panel = panel_of([*events, answers], 1004.0)
    assert "1/3 answered" in panel
    assert "waiting" not in panel
    died = panel_of([*events, {"event": "run_failed", "time": 1005.0, "message": "no quorum"}], 1006.0)
    assert "waiting" not in died


def test_panel_says_who_works_and_since_when() -> None:
    asked = {"event": "asked", "time": 1000.0, "step": 0, "sites": [0, 1, 2]}
    heard = {"event": "answers", "time": 1010.0, "step": 0, "answered": 1, "asked": 3, "sites": [0], "failed": [2]}
    assert "nobody was asked yet" in panel_of([started(names=HOSPITALS), begin(0, 1000.0)], 1001.0)
    panel = panel_of([started(names=HOSPITALS), begin(0, 1000.0), asked, heard], 1072.0)
    assert "1/3 answered" in panel
    assert "Working    hospital-b 0:01:12 " in panel


def test_panel_shows_how_fast_images_are_decoded_as_long_as_they_are() -> None:
    events = [started(), begin(0, 1000.0), Decoding(1248, 90_000, 4.0).event()]
    assert "312/s, 0:04:44" in panel_of(events, 1002.0)
    answers = {"event": "answers", "time": 1003.0, "step": 0, "answered": 1, "asked": 3}
    assert "Images" not in panel_of([*events, answers], 1004.0)
    assert len(log_of(events)) == 1, "a log would have a line for each half second"


def test_site_that_was_asked_again_is_among_the_failures() -> None:
    again = {"event": "asking_again", "time": 1002.0, "step": 1, "failures": [ASKED_AGAIN]}
    state = state_after([started(names=HOSPITALS), begin(1, 1000.0), again, end(1, 1010.0, 10.0, failed=(0,))])
    assert state.failures == [
        "hospital-b (TimeoutError, code 5) in task 1 adapt 2/2, asked again",
        "hospital-a (MemoryStoreError, code 106) in task 1 adapt 2/2",
    ]


def test_log_says_how_the_run_ended_and_where_it_went_on() -> None:
    assert log_of([started(4)])[0].endswith("6 steps, resumed after step 4")
    assert log_of([started(), {"event": "run_failed", "message": "no quorum"}])[-1] == "run failed: no quorum"
    finished = log_of([started(), {"event": "run_finished", "summary": SUMMARY}])
    assert finished[-1] == "run completed, accuracy 60.0 % at the end"
    unknown = {"event": "task_evaluated", "task": 1, "accuracy": None, "site_accuracies": [None]}
    assert log_of([started(), unknown])[-1] == "task 2/2 learnt, accuracy -"


def test_log_reaches_its_reader_at_once() -> None:
    buffer = io.BytesIO()
    view = ProgressView(Console(file=io.TextIOWrapper(buffer, encoding="ascii")))
    view.update({**started(), "name": "Größe"})
    assert buffer.getvalue().startswith(b"Gr??e: dynammo")  # flushed, and the narrow character set stopped nothing


def test_log_stays_a_log_where_colours_are_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert log_of(first_task())[-1].startswith("task 1/2 learnt")


def test_panel_shows_where_the_run_stands() -> None:
    answers = {"event": "answers", "time": 1028.0, "step": 3, "answered": 1, "asked": 3}
    panel = panel_of([*first_task(), begin(3, 1026.0), answers], now=1030.0)
    lines = [line.strip("│ \n") for line in panel.splitlines()]
    assert "skin - dynammo" in lines[0]
    assert lines[1].split() == ["Task", "2/2", "wart", "[red]x[/red],", "Größe"]
    assert lines[2].split() == ["Stage", "adapt,", "round", "1/2"]
    assert lines[3].startswith("Sites") and lines[3].endswith("1/3 answered")
    assert lines[4].startswith("Steps") and lines[4].endswith("3/6")
    sites, steps = (lines[row].split()[1] for row in (3, 4))
    assert sites.index("╺") / len(sites) == pytest.approx(1 / 3, abs=0.02)  # where the full part of the bar ends
    assert steps.index("╺") / len(steps) == pytest.approx(1 / 2, abs=0.02)
    # 30 s since the start; two steps of 12 s and one of 2 s, less the 4 s that the one in hand has taken.
    assert lines[5].split(maxsplit=1)[1] == "0:00:30 elapsed, about 0:00:22 left"
    assert lines[6].split(maxsplit=1)[1] == "70.1 % after task 1"
    assert lines[7].split() == ["Recall", "-"]  # the log of an earlier version has none
    assert lines[8].split(maxsplit=1)[1] == "site 2 from task 1 adapt 1/2"
    assert lines[9].split(maxsplit=1)[1] == "1, last: site 0 (MemoryStoreError, code 106) in task 1 adapt 2/2"


@pytest.mark.parametrize("width", [30, 80, 200])
def test_panel_fits_its_terminal(width: int) -> None:
    panel = panel_of([*first_task(), begin(3, 1026.0)], now=1030.0, width=width)
    lines = [line for line in panel.splitlines() if line.strip()]
    assert {len(line) for line in lines} == {width}
    assert len(lines) == 11  # nothing wraps


def test_panel_names_few_sites_of_many_and_the_latest_accuracies() -> None:
    crowd = end(0, 1001.0, 1.0)
    crowd["sites"] = [{"site": site, "abstained": True} for site in range(40)]
    tested = [
        {"event": "task_evaluated", "time": 1001.0, "task": task, "accuracy": 90.0 - task, "site_accuracies": []}
        for task in range(8)
    ]
    panel = panel_of([started(), begin(0, 1000.0), crowd, *tested], now=1002.0)
    assert "sites 0, 1, 2, 3, 4, 5 and 34 more from task 1 adapt 1/2" in panel
    assert "88.0, 87.0, 86.0, 85.0, 84.0, 83.0 % after tasks 3-8" in panel


def test_panel_shows_the_end() -> None:
    assert "Ended      failed: no quorum" in panel_of(
        [started(), {"event": "run_failed", "message": "no quorum"}], 1001.0
    )
    assert "Ended      completed" in panel_of([started(), {"event": "run_finished", "summary": SUMMARY}], 1001.0)
    assert "Steps" in panel_of([], 1001.0)  # a run that has not said anything yet


def test_terminal_gets_the_panel() -> None:
    primary, secondary = os.openpty()
    with open(secondary, "w") as file, open(primary, "rb", buffering=0) as reader:  # noqa: PTH123, a descriptor, no path
        with ProgressView(Console(file=file, width=80, _environ={"TERM": "xterm"})) as view:
            view.update(started())
        file.flush()
        shown = b""
        while "╭".encode() not in shown and select.select([reader], [], [], 30)[0]:  # it comes piece by piece
            shown += reader.read(8192)
        assert "╭" in shown.decode(errors="replace")


def test_final_table_fits_80_columns() -> None:
    console = Console(file=io.StringIO(), width=80, record=True)
    console.print(final_table(SUMMARY))
    text = console.export_text()
    assert all(len(line.rstrip()) <= 80 for line in text.splitlines())
    assert "…" not in text
    rows = dict(line.strip("│ ").split("│", 1) for line in text.splitlines() if line.startswith("│"))
    shown = {name.strip(): value.strip() for name, value in rows.items()}
    assert shown["average incremental accuracy"] == "65.0 %"
    assert shown["worst site accuracy"] == "- %"
    assert shown["backward transfer"] == "-15.0 points"
    assert shown["accuracy after each task"] == "70.1, 60.0 %"
    assert shown["accuracy at each site"] == "80.0, 40.0, - %"
    named = list(final_table(SUMMARY, HOSPITALS).columns[1].cells)
    assert any("hospital-a 80.0, hospital-b 40.0, hospital-c - %" in str(words) for words in named)
    assert shown["one prediction"] == "48.2 million multiply-accumulates"
    assert shown["parameters"] == "5.01 million deployed, 1.63 million trained"
    assert shown["sent"] == "12.0 MB to the server, 246.3 MB to the sites"
    assert shown["took"] == "0:01:23 in 6 rounds"
    assert next(iter(shown)) == "average incremental accuracy"


def test_where_classes_are_uneven_the_mean_recall_stands_first() -> None:
    uneven = {"leading_metric": "mean_class_recall", "average_mean_class_recall": 63.0}
    uneven["site_mean_class_recalls"] = [72.5, 33.3, None]
    first, second = final_table(SUMMARY | uneven).columns
    assert list(first.cells)[:2] == ["average mean class recall", "mean class recall"]
    shown = dict(zip(first.cells, map(str, second.cells), strict=True))
    assert shown["mean class recall at each site"] == "72.5, 33.3, - %"
    by_site = [words for words in shown if str(words).endswith("at each site")]
    assert by_site == ["mean class recall at each site", "accuracy at each site"]
    ended = {"event": "run_finished", "time": 1000.0, "summary": SUMMARY | uneven}
    assert "run completed, mean class recall 61.2 %, accuracy 60.0 % at the end" in log_of([started(), ended])
    earlier = first_task()[-1] | {"mean_class_recall": 29.7}  # logged only where classes were uneven
    assert "task 1/2 learnt, mean class recall 29.7 %, accuracy 70.1 % (sites: 50.0 to 90.0 %)" in log_of(
        [started(), earlier]
    )
    told = earlier | {"leading_metric": "mean_class_recall", "site_mean_class_recalls": [41.0, 20.5, None]}
    recall = "mean class recall 29.7 % (sites: 20.5 to 41.0 %)"
    accuracy = "accuracy 70.1 % (sites: 50.0 to 90.0 %)"
    assert f"task 1/2 learnt, {recall}, {accuracy}" in log_of([started(), told])
    rows = [line.strip("│ \n") for line in panel_of([started(), told], now=1030.0).splitlines()]
    assert [row for row in rows if " after task " in row] == [
        "Recall     29.7 % after task 1",
        "Accuracy   70.1 % after task 1",
    ]
    even = told | {"leading_metric": "last_accuracy"}
    assert f"task 1/2 learnt, {accuracy}, {recall}" in log_of([started(), even])
