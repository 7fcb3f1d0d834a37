"""Follow a run by the events of its log: how far it is, who answered, what failed, and how long it will take."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from dynammo_core.scoring.leading import RECALL, recall_leads
from server.run_directory.advice import failure_words, held_words, site_label

Event = Mapping[str, Any]

MOST_NAMED = 6
"""Sites or accuracies in one line; the rest is counted."""


class RunState:
    """How far a run has come, according to its events. Steps, tasks and rounds count from 0; times are unix seconds."""

    def __init__(self) -> None:
        self.start: Event = {"name": "run", "tasks": [], "plan": [], "time": 0.0}
        self.step: Event = {}  # the step in hand, or the last one
        self.finished = 0  # number of finished steps
        self.answered = self.asked = 0  # sites, in the step in hand
        self.working: dict[int, float] = {}  # sites that were asked and have not answered yet, and since when
        self.decoding: Event = {}  # how far a site of this process has come with its images, while it decodes
        self.waiting: Sequence[int] = ()  # sites that are not connected, while that is the last that was heard
        self.accuracies: dict[int, float | None] = {}  # percent over all classes so far, by task
        self.recalls: dict[int, float | None] = {}  # their mean class recall in percent, by task; None if not logged
        self.recall_leads = False  # of the last test
        self.abstained = ""  # who last abstained, and from what
        self.failures: list[str] = []
        self.held = ""  # why the newest model is not the deployed one
        self.ending = ""
        self._seconds: dict[str, list[float]] = defaultdict(list)  # seconds of finished steps, by stage

    def update(self, event: Event) -> None:
        """Take note of an event, and ignore kinds that say nothing of progress."""
        self.waiting, self.decoding = (), {}
        match event["event"]:
            case "decoding":
                self.decoding = event
            case "run_started":
                self.start, self.finished, self.ending = event, event["resumed_at"], ""
            case "step_started":
                self.step, self.answered, self.asked, self.working = event, 0, 0, {}
            case "waiting":
                self.waiting = event["sites"]
            case "asked":
                self.working |= dict.fromkeys(event["sites"], event["time"])
                self.asked = max(self.asked, self.answered + len(self.working))
            case "answers":
                self.answered, self.asked = event["answered"], event["asked"]
                for site in (*event.get("sites", ()), *event.get("failed", ())):
                    self.working.pop(site, None)
            case "asking_again":
                place = where(self.start["plan"][event["step"]])
                self.failures += [f"{words} in {place}, asked again" for words in self.failed(event["failures"])]
            case "step_finished":
                self.finished, self.working = event["step"] + 1, {}
                self._seconds[event["stage"]].append(event["seconds"])
                if sites := abstaining(event):
                    self.abstained = f"{self.labels(sites)} from {where(event)}"
                self.failures += [f"{words} in {where(event)}" for words in self.failed(event["failures"])]
            case "task_evaluated":
                self.accuracies[event["task"]] = event["accuracy"]
                self.recalls[event["task"]] = event.get("mean_class_recall")
                self.recall_leads = recall_led(event)
            case "forgotten":
                self.working = {}
            case "gate_judged":
                self.held = held_words(event, self.start.get("site_names", ())) if event["broken"] else ""
            case "released" | "rolled_back":
                self.held = ""
            case "run_finished":
                self.ending = str(event["summary"]["status"])
            case "run_failed":
                self.ending, self.working = f"failed: {failure_words(self.start, event)}", {}
                place = f" in {where(self.step)}" if self.step else ""
                self.failures += [f"{words}{place}" for words in self.failed(event.get("failures", ()))]

    def label(self, site: int) -> str:
        """Return what people call a site."""
        return site_label(self.start.get("site_names", ()), site)

    def labels(self, sites: Sequence[int]) -> str:
        """Return `hospital-a, hospital-b and 3 more`, with sites without names by their numbers."""
        shown = sites[:MOST_NAMED]
        words = [self.label(site) for site in shown]
        if len(shown) > 1 and words == [f"site {site}" for site in shown]:
            words = ["sites " + str(shown[0]), *map(str, shown[1:])]
        return ", ".join(words) + (f" and {len(sites) - MOST_NAMED} more" if len(sites) > MOST_NAMED else "")

    def failed(self, failures: Iterable[Event]) -> list[str]:
        """Return `hospital-a (TimeoutError, code 5)` for each failure."""
        return [f"{self.label(one['site'])} ({one['error']}, code {one['code']})" for one in failures]

    def seconds_left(self, now: float) -> float | None:
        """Estimate the seconds left: the mean of each stage's finished steps, per step to come; None before the first.

        A stage not seen yet counts as a mean step, and the step in hand has used up some of its time.
        """
        to_come = self.start["plan"][self.finished :]
        if self.ending or not to_come:
            return 0.0
        if not self._seconds:
            return None
        overall = fmean(seconds for stage in self._seconds.values() for seconds in stage)
        means = {stage: fmean(seconds) for stage, seconds in self._seconds.items()}
        expected = [means.get(step["stage"], overall) for step in to_come]
        if self.step and self.step["step"] == self.finished:
            expected[0] = max(expected[0] - max(now - self.step["time"], 0.0), 0.0)
        return sum(expected)


def recall_led(test: Event) -> bool:
    """Tell whether the recall leads in a test's event; earlier versions logged it only then, and did not say so."""
    return "mean_class_recall" in test and recall_leads({"leading_metric": RECALL, **test})


def where(step: Event) -> str:
    """Return `task 1 adapt 2/5`."""
    return f"task {step['task'] + 1} {step['stage']} {step['round'] + 1}/{step['rounds']}"


def abstaining(step: Event) -> list[int]:
    """List the sites that abstained from a step."""
    return [site["site"] for site in step["sites"] if site["abstained"]]
