"""Say in words for operators what codes and numbers in the event log mean, and what to ask at a site that failed."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from dynammo_core.support import errors

Failure = Mapping[str, Any]
"""`site`, `code` and `error`, as the event log lists them."""

BY_CODE: Mapping[int, str] = MappingProxyType(
    {
        errors.ConfigError.code: "its settings do not allow this experiment: ask for `step failed` in its site.log",
        errors.DataError.code: "an image or a label is refused there: `start` has shown which, or they run "
        "`dynammo-site doctor` with `--experiment` and your file",
        errors.WeightsError.code: "its backbone weights are others: send it the right file",
        errors.CheckpointError.code: "a file cannot be read or written there: ask whether its disk is full",
        errors.ProtocolError.code: "a message or an answer does not fit: its version, say, or the name under which its "
        "key is registered; ask for `step failed` in its site.log",
        errors.MemoryStoreError.code: "its memory does not fit this run: ask for `step failed` in its site.log",
        errors.NotApproved.code: "nobody there has approved {experiment}, or not for another run: they type "
        "`dynammo-site approve`, or what `start` shows",
        errors.PolicyError.code: "its policy forbids it, or the hour: ask for `step refused` in its site.log",
        errors.MissingTensorsError.code: "it lacks weights, which are sent again: nothing to ask",
        errors.ForeignApp.code: "its version differs from yours: install the same on both sides",
        errors.AnsweredBefore.code: "it answered this step for other weights: start a new run, which they approve",
        errors.DeviceMemoryError.code: "its GPU has too little memory: they free it, or set `device: cpu`",
    }
)
BY_ERROR: Mapping[str, str] = MappingProxyType(
    {
        "NotConnected": "it is not connected: ask whether `dynammo-site start` is running",
        "NotDelivered": "Flower could not reach it: ask whether `dynammo-site start` is running",
        "NoAnswerBeforeDeadline": "it was too slow, or hangs: ask for its site.log, or raise the deadline",
        "Restarted": "it restarted during the step: nothing to ask unless it happens again",
    }
)
"""What the server itself found, whatever the code."""
GONE = "Flower lost the connection to it: ask whether `dynammo-site start` is running"
DEFECT = "a defect: ask for the traceback in its site.log"
FLOWERS_CODES = range(1, 9)


def what_to_ask(failure: Failure, experiment: str = "this experiment") -> str:
    """Return what a failure of a site means and what to do about it.

    Args:
        failure: code and class of the error.
        experiment: how to name the experiment, such as by its name and the hash that people approve.
    """
    if failure["error"] in BY_ERROR:
        return BY_ERROR[failure["error"]]
    if failure["code"] in FLOWERS_CODES:
        return GONE
    return BY_CODE.get(failure["code"], DEFECT).format(experiment=experiment)


def what_to_ask_of(error: str) -> str:
    """Return what to do about a failure of which only the class of the error is known, such as `PolicyError`."""
    codes = {one.__name__: one.code for one in errors.DynammoError.__subclasses__()}
    return what_to_ask({"error": error, "code": codes.get(error, 0)})


def failure_words(start: Mapping[str, Any], failed: Mapping[str, Any]) -> str:
    """Return why a run failed: what happened, and a sentence for each kind of failure that says what to ask where.

    In a simulation there is nobody to ask: the logs of its sites are in its own.

    Args:
        start: the event `run_started` of the run; it may be empty.
        failed: the event `run_failed`.
    """
    kinds: dict[str, list[str]] = {}
    for one in failed.get("failures", ()):
        kind = f"({one['error']}, code {one['code']})"
        kind += f": {what_to_ask(one, experiment_words(start))}" if start.get("approval") else ""
        kinds.setdefault(kind, []).append(site_label(start.get("site_names", ()), one["site"]))
    if not kinds:
        return str(failed["message"])
    sentences = [f"{', '.join(names)} {kind}" for kind, names in kinds.items()]
    return ". ".join([str(failed["message"]).rstrip(". "), *sentences]) + "."


def held_words(judged: Mapping[str, Any], site_names: Sequence[str]) -> str:
    """Return why the gate holds a model back, given the event `gate_judged`: which bounds it breaks, where most.

    An example: `the model after task 3 is held back, that after task 2 stays deployed: pneumonia lost 3.1 points
    (class_recall: 2), most at county`.
    """
    losses = []
    for one in judged["broken"]:
        if one["points"] is None:
            losses.append(f"no site answered both tests ({one['bound']}: {one['limit']:g})")
            continue
        where = "" if one["site"] is None else f", most at {site_label(site_names, one['site'])}"
        losses.append(
            f"{one['label'] or 'known classes'} lost {one['points']:.1f} points "
            f"({one['bound']}: {one['limit']:g}){where}"
        )
    held, stays = judged["task"] + 1, judged["deployed"] + 1
    return f"the model after task {held} is held back, that after task {stays} stays deployed: {'; '.join(losses)}"


def experiment_words(start: Mapping[str, Any]) -> str:
    """Return how people name a run's experiment: `digits (hash 3f2a9c0000000000)`, as they see it when they approve."""
    approval = start.get("approval")
    return f"{start['name']} (hash {approval[:16]})" if approval else "this experiment"


def site_label(names: Sequence[str], site: int) -> str:
    """Return what people call a site: its name or, where sites have none, its number."""
    return str(names[site]) if site < len(names) else f"site {site}"


def release_command(directory: Path) -> str:
    """Return the command that deploys a run's newest model although the gate holds it back, wherever it is typed."""
    return shlex.join(["dynammo-server", "release", str(directory.absolute())])
