"""Run directories as real runs leave them in every state, written by hand so that every number is known."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from server.run_directory.flower_run import FLOWER_RUN

Event = dict[str, Any]
START = 1_700_000_000.0
SITES = ("hospital-a", "hospital-b", '<b id="x">&')
TASKS = [["naevus", "<script>document.title = 'taken over'</script>"], ["melanoma"]]
PLAN = [
    {"task": task, "stage": stage, "round": round_, "rounds": rounds}
    for task in range(2)
    for stage, rounds in (("adapt", 2), ("evaluate", 1))
    for round_ in range(rounds)
]
FAILURE = {"site": 1, "code": 5, "error": "TimeoutError"}


def started(time: float, names: tuple[str, ...] = SITES, resumed_at: int = 0) -> Event:
    facts = {"name": "skin", "method": "dynammo", "dataset": "moles", "tasks": TASKS, "plan": PLAN}
    return {
        "event": "run_started",
        "time": time,
        **facts,
        "sites": len(names),
        "site_names": names,
        "resumed_at": resumed_at,
    }


def begun(step: int, time: float) -> Event:
    return {"event": "step_started", "time": time, "step": step, **PLAN[step]}


def waiting(step: int, time: float, *sites: int) -> Event:
    return {"event": "waiting", "time": time, "step": step, "sites": list(sites)}


def trained(site: int, samples: int, seconds: float) -> Event:
    return {"site": site, "samples": samples, "abstained": False, "metrics": {"loss": 0.5, "seconds": seconds}}


def tested(site: int, samples: int, seconds: float) -> Event:
    return {"site": site, "samples": samples, "abstained": False, "metrics": {"seconds": seconds}}


def abstained(site: int) -> Event:
    return {"site": site, "samples": 0, "abstained": True, "metrics": {}}


def done(step: int, time: float, sites: list[Event], failures: Iterable[Event] = ()) -> Event:
    amounts = {"seconds": 10.0, "bytes_up": 1_000_000, "bytes_down": 2_000_000}
    fields = {**PLAN[step], **amounts, "sites": sites, "failures": list(failures)}
    return {"event": "step_finished", "time": time, "step": step, **fields}


def first_task() -> list[Event]:
    """The first task and the beginning of the second, in which hospital-b is waited for.

    hospital-a trains at 100 and 50 images a second; hospital-b fails, is asked again and fails again in the second
    step, and trained at 20 in the first; the third site abstains from training.
    """
    return [
        started(START),
        begun(0, START),
        done(0, START + 10, [trained(0, 200, 2.0), trained(1, 100, 5.0), abstained(2)]),
        begun(1, START + 10),
        {"event": "asking_again", "time": START + 15, "step": 1, "failures": [FAILURE]},
        done(1, START + 20, [trained(0, 200, 4.0), abstained(2)], [{**FAILURE, "error": "NoAnswerBeforeDeadline"}]),
        begun(2, START + 20),
        done(2, START + 30, [tested(0, 30, 1.5), tested(1, 20, 2.5), tested(2, 10, 0.5)]),
        {
            "event": "task_evaluated",
            "time": START + 30,
            "task": 0,
            "accuracy": 71.25,
            "site_accuracies": [90.0, 52.5, None],
            "mean_class_recall": 61.5,
            "leading_metric": "mean_class_recall",
            "site_mean_class_recalls": [85.0, 33.5, None],
        },
        begun(3, START + 31),
        waiting(3, START + 32, 1),
    ]


def completed() -> list[Event]:
    summary = {"status": "completed", "last_accuracy": 71.25}
    return [*first_task(), {"event": "run_finished", "time": START + 90, "summary": summary}]


def failed() -> list[Event]:
    return [*first_task(), {"event": "run_failed", "time": START + 40, "message": "task 2: no <quorum>"}]


def write_run(directory: Path, log: Iterable[Event], flower: int | None = None, submitted: float = START - 5) -> Path:
    """A run directory; `flower`: Flower's id of the run, handed to it at `submitted`."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.yaml").write_text("name: skin\n")
    if lines := "".join(json.dumps(event) + "\n" for event in log):
        (directory / "events.jsonl").write_text(lines)
    if flower is not None:
        (directory / FLOWER_RUN).write_text(json.dumps({"run-id": flower}))
        os.utime(directory / FLOWER_RUN, (submitted, submitted))
    return directory


def append(directory: Path, event: Event) -> None:
    with (directory / "events.jsonl").open("a") as file:
        file.write(json.dumps(event) + "\n")
