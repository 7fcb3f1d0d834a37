"""Read where a run stands, site by site, from its log and, for a log without an end, from Flower."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from dynammo_core.support.errors import RunError
from server.consortium.launch import command_to_continue
from server.run_directory.advice import BY_ERROR, experiment_words, release_command, what_to_ask
from server.run_directory.directory import EVENTS
from server.run_directory.run_files import RunFiles
from server.watch.progress import duration
from server.watch.run_state import Event, RunState


@dataclass
class SiteStatus:
    """What a run's log says about one site.

    Attributes:
        name: display name.
        answered: end of the last step that it answered, abstaining included, in unix seconds.
        seconds: seconds that it worked on the last step in which it did not abstain.
        speeds: its images per second in each step that trained, each image counted once, however many the epochs.
        accuracy: accuracy on its own test images after the last task, in percent.
        recall: mean recall over the classes that these images are of, in percent.
        abstained: number of steps from which it abstained.
        failures: number of times that it was asked and failed.
        error: the last failure.
        ask: what to ask there, while its last answer is a failure or it is not connected.
        since: when it was asked for what it works on, in unix seconds, while it works.
        state: "working", or what it did when it was last asked (answered, abstained, failed); or "waited for",
            "connected" and "not connected", before it is asked.
    """

    name: str = ""
    answered: float | None = None
    seconds: float | None = None
    speeds: list[float] = field(default_factory=list)
    accuracy: float | None = None
    recall: float | None = None
    abstained: int = 0
    failures: int = 0
    error: str = ""
    ask: str = ""
    since: float | None = None
    state: str = "not asked yet"

    @property
    def speed(self) -> float | None:
        """Return the median of its images per second."""
        return median(self.speeds) if self.speeds else None

    def answer(self, fields: Event, time: float) -> None:
        """Take note of an answer, as `step_finished` lists it."""
        self.answered = time
        self.become("abstained" if fields["abstained"] else "answered")
        self.abstained += bool(fields["abstained"])
        metrics = fields["metrics"]
        self.seconds = metrics.get("seconds", self.seconds)
        if "loss" in metrics and metrics["seconds"] > 0:  # a step without a loss trained nothing
            self.speeds.append(fields["samples"] / metrics["seconds"])

    def become(self, state: str, *, ask: str = "", since: float | None = None) -> None:
        """Take note of what the site does now."""
        self.state, self.ask, self.since = state, ask, since

    def fail(self, fields: Event, experiment: str) -> None:
        """Take note of a failure; `experiment` is what people call the experiment."""
        self.failures += 1
        self.become("failed", ask=what_to_ask(fields, experiment))
        self.error = f"{fields['error']}, code {fields['code']}"

    def as_fields(self, now: float) -> dict[str, Any]:
        """Return the fields for JSON."""
        return {
            "name": self.name,
            "state": self.state,
            "last_answer": self.answered,
            "seconds_since_answer": None if self.answered is None else round(max(now - self.answered, 0.0), 1),
            "seconds_of_last_step": None if self.seconds is None else round(self.seconds, 3),
            "images_per_second": None if self.speed is None else round(self.speed, 1),
            "accuracy": self.accuracy,
            "mean_class_recall": self.recall,
            "abstained": self.abstained,
            "failures": self.failures,
            "last_error": self.error,
            "ask": self.ask,
            "working_since": self.since,
        }


class RunStatus:
    """One run at one moment.

    Args:
        directory: directory of the run.
        events: events of its log.
        submitted: when it was last handed to Flower, in unix seconds; None: never.
        flower: Flower's status of it, such as `finished:stopped`; None if Flower says nothing.

    Attributes:
        progress: progress of the run as a whole.
        sites: in their order in the experiment.
        started: its first start, in unix seconds.
        heard: its last event, in unix seconds.
        state: starting, running, completed, failed, stopped by an operator, dead (its process is gone), unfinished
            (neither its log nor Flower tells how it ended), or unreadable.
        note: explains the state, or what to do about it.
    """

    def __init__(
        self, directory: Path, events: Iterable[Event], *, submitted: float | None = None, flower: str | None = None
    ) -> None:
        self.directory = directory
        self.submitted = submitted
        self.progress = RunState()
        self.sites: list[SiteStatus] = []
        self.started: float | None = None
        self.heard: float | None = None
        self._waited_for: list[SiteStatus] = []
        for event in events:
            self._update(event)
        self.state, self.note = self._judge(flower)

    @staticmethod
    def read(directory: Path, *, submitted: float | None = None, flower: str | None = None) -> RunStatus:
        """Read the run in a directory; the other arguments are those of the class.

        Raises:
            RunError: there is no run, or its files cannot be read or do not describe one.
        """
        events = RunFiles.read(directory).events
        try:
            return RunStatus(directory, events, submitted=submitted, flower=flower)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise RunError(
                f"{directory / EVENTS} does not describe a run ({type(error).__name__}: {error})",
                remedy="Use the version of this project that made the run",
            ) from error

    @staticmethod
    def unreadable(directory: Path, reason: str) -> RunStatus:
        """Return a run of which only the name is known."""
        run = RunStatus(directory, ())
        run.state, run.note = "unreadable", reason
        return run

    @property
    def goes_on(self) -> bool:
        """Return whether the run may progress without anyone's help."""
        return self.state in ("starting", "running", "unfinished")

    @property
    def accuracy(self) -> float | None:
        """Return the accuracy over all classes so far after the last task, in percent."""
        return _last(self.progress.accuracies)

    @property
    def recall(self) -> float | None:
        """Return the mean class recall over all classes so far after the last task, in percent."""
        return _last(self.progress.recalls)

    @property
    def task(self) -> str:
        """Return the current task, or the last one, as `2/5`."""
        step, tasks = self.progress.step, self.progress.start["tasks"]
        return f"{step['task'] + 1}/{len(tasks)}" if step else "-"

    @property
    def release_command(self) -> str:
        """Return the command that deploys the newest model although the gate holds it back."""
        return release_command(self.directory)

    def moment(self, now: float) -> float:
        """Return the time that a display shows, in unix seconds: now, or the last event of a run that has ended."""
        return now if self.goes_on else self.heard or now

    def seconds_left(self, now: float) -> float | None:
        """Return the estimated seconds left, or None if no estimate can be made."""
        return self.progress.seconds_left(now) if self.goes_on and self.progress.start["plan"] else None

    def as_fields(self, now: float) -> dict[str, Any]:
        """Return the fields for JSON; tasks and rounds count from 1, times are unix seconds, accuracies percent."""
        progress, step = self.progress, self.progress.step
        tasks, left = progress.start["tasks"], self.seconds_left(now)
        return {
            "name": self.directory.name,
            "state": self.state,
            "note": self.note,
            "method": progress.start.get("method"),
            "dataset": progress.start.get("dataset"),
            "started": self.started,
            "last_event": self.heard,
            "seconds_left": None if left is None else round(left, 1),
            "task": step["task"] + 1 if step else None,
            "tasks": len(tasks),
            "classes": tasks[step["task"]] if step else [],
            "stage": step.get("stage"),
            "round": step["round"] + 1 if step else None,
            "rounds": step.get("rounds"),
            "steps_finished": progress.finished,
            "steps": len(progress.start["plan"]),
            "sites_answered": progress.answered,
            "sites_asked": progress.asked,
            "waiting_for": [progress.label(site) for site in progress.waiting] if self.goes_on else [],
            "working": [progress.label(site) for site in progress.working] if self.goes_on else [],
            "accuracy": self.accuracy,
            "accuracy_after_tasks": [accuracy for _, accuracy in sorted(progress.accuracies.items())],
            "mean_class_recall": self.recall,
            "mean_class_recall_after_tasks": [recall for _, recall in sorted(progress.recalls.items())],
            "held_back": progress.held,
            "failures": progress.failures,
            "sites": [site.as_fields(now) for site in self.sites],
        }

    def _judge(self, flower: str | None) -> tuple[str, str]:
        ending = self.progress.ending
        unheard = self.submitted is not None and self.submitted > (self.heard or 0.0)
        if ending and not unheard:
            state, _, message = ending.partition(": ")
            again = command_to_continue(self.directory)
            return state, message and f"{message.rstrip('. ')}. Continue with: {again}"
        if flower is None:
            return (
                "unfinished",
                "its log does not say how it ended, and Flower does not say whether it is still running",
            )
        if not flower.startswith("finished"):
            return ("starting" if unheard else "running"), ""
        state = "stopped" if flower == "finished:stopped" else "dead"
        return state, f"continue with: {command_to_continue(self.directory)}"

    def _update(self, event: Event) -> None:
        self.progress.update(event)
        self.heard = float(event["time"])
        for site in self._waited_for:
            site.become("connected" if event["event"] == "waiting" else "not connected")
        self._waited_for = []
        match event["event"]:
            case "run_started":
                self.started = self.started or self.heard
                self.sites += [SiteStatus() for _ in range(len(self.sites), event["sites"])]
                for index, site in enumerate(self.sites):
                    site.name = self.progress.label(index)
            case "waiting":
                self._waited_for = [self.sites[index] for index in event["sites"]]
                for site in self._waited_for:
                    site.become("waited for", ask=BY_ERROR["NotConnected"])
            case "asked":
                for index in event["sites"]:
                    self.sites[index].become("working", since=self.heard)
            case "answers":
                for state, indices in (("answered", event.get("sites", ())), ("failed", event.get("failed", ()))):
                    for index in indices:
                        self.sites[index].become(state)
            case "asking_again" | "run_failed" | "forgotten":
                self._fail(event)
            case "step_finished":
                for answer in event["sites"]:
                    self.sites[answer["site"]].answer(answer, self.heard)
                self._fail(event)
            case "task_evaluated":
                for site, accuracy in zip(self.sites, event["site_accuracies"], strict=False):
                    site.accuracy = accuracy
                for site, recall in zip(self.sites, event.get("site_mean_class_recalls", ()), strict=False):
                    site.recall = recall

    def _fail(self, event: Event) -> None:
        for failure in event.get("failures", ()):
            self.sites[failure["site"]].fail(failure, experiment_words(self.progress.start))


def _last(by_task: Mapping[int, float | None]) -> float | None:
    return by_task[max(by_task)] if by_task else None


def age(moment: float, now: float) -> str:
    """Return how long ago something was: `0:01:23`, or from two days on `5 days`; both in unix seconds."""
    days = int((now - moment) // 86_400)
    return f"{days} days" if days > 1 else duration(now - moment)
