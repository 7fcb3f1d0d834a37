"""The display of a comparison, fed by hand-made events and a clock: bars that come and go, and the time foretold."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from simulations.comparisons.process_pool import Outcome
from simulations.comparisons.progress import ComparisonView

PLAN = [{"task": 0, "stage": "train", "round": index, "rounds": 4} for index in range(4)]


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def start(time: float) -> dict[str, Any]:
    return {"event": "run_started", "time": time, "plan": PLAN, "tasks": [["a"]], "resumed_at": 0}


def step(index: int, seconds: float) -> dict[str, Any]:
    return {"event": "step_finished", "step": index, **PLAN[index], "seconds": seconds, "sites": [], "failures": []}


def shown(view: ComparisonView) -> list[list[str]]:
    buffer = io.StringIO()
    Console(width=100, file=buffer).print(view.progress.get_renderable())
    return [[part for part in line.replace("━", " ").split("  ") if part] for line in buffer.getvalue().splitlines()]


def test_bars_and_times_left() -> None:
    clock = Clock()
    view = ComparisonView(Console(file=io.StringIO()), {"a": "replay · seed 1", "b": "replay · seed 2"}, 3, clock)
    assert shown(view)[0][0].split() == ["all", "runs"]
    assert "3/5 runs" in " ".join(shown(view)[0])

    view.update("a", start(1000.0))
    clock.now = 1010.0
    view.update("a", step(0, 10.0))
    every, own = (" ".join(" ".join(parts).split()) for parts in shown(view))
    # A quarter of a run took 10 s: 30 s are left of this one, and 1.75 / 0.25 * 10 s = 70 s of both.
    assert own == "replay · seed 1 1/4 steps 0:00:30 left"
    assert every == "all runs 3/5 runs 0:01:10 left"
    clock.now = 1015.0
    assert " ".join(shown(view)[1]).split()[-2:] == ["0:00:25", "left"]  # it counts down between events

    view.finish(Outcome("a", ""))
    clock.now = 1040.0
    view.update("b", start(1040.0))
    assert len(shown(view)) == 2
    view.finish(Outcome("b", "no data"))
    assert [" ".join(" ".join(parts).split()) for parts in shown(view)] == ["all runs 4/5 runs"]


def test_a_finished_run_prints_nothing() -> None:
    buffer = io.StringIO()
    with ComparisonView(Console(file=buffer, width=80), {"a": "replay · seed 1"}, 0) as view:
        view.update("a", start(1000.0))
        view.finish(Outcome("a", ""))
    (line,) = buffer.getvalue().splitlines()  # the last state of the bar for all
    assert "1/1 runs" in line


def test_a_log_gets_a_line_for_each_run_that_has_ended() -> None:
    clock, log = Clock(), io.StringIO()
    with ComparisonView(Console(file=log, width=20), {"a": "replay [1] · seed 1", "b": "seed 2"}, 3, clock) as view:
        view.update("a", start(1000.0))
        clock.now = 1040.0
        view.finish(Outcome("a", ""))
        view.finish(Outcome("b", "no data"))
    # One of two runs took 40 s, so that as much is left; of none nothing is.
    assert log.getvalue().splitlines() == [
        "[4/5 runs] replay [1] · seed 1 finished, 0:00:40 left",
        "[4/5 runs] seed 2 failed",
    ]
