"""Take back what was added to a run as long as nobody has begun it, such as a class whose name was misspelt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dynammo_core.configuration.config import Config, resolve
from dynammo_core.support.errors import ConfigError
from server.run_directory.directory import EVENTS, Event, RunDirectory
from server.run_directory.event_tail import EventTail
from server.run_directory.lineage import GROWTH
from server.run_directory.progress import saved_state


def without_unbegun(config: Config[Any], run: Path) -> Config[Any]:
    """Return a run's experiment without classes, tasks, sites and networks of which no site has answered a step yet.

    Args:
        config: the experiment as `config.yaml` of the run has it.
        run: the run directory.

    Raises:
        CheckpointError: the run's checkpoint is corrupt.
    """
    directory = RunDirectory(run)
    if not directory.can_resume:
        return config
    identity, progress = saved_state(directory.checkpoints)
    events: list[Event] = []
    EventTail(run / EVENTS, from_end=False).feed(events.append)
    answers = (event for event in events if event["event"] == "answers" and event["step"] >= progress.next_step)
    if any(event.get("sites") for event in answers):
        return config  # a site that has answered a step refuses another one in its place
    try:
        before = resolve(json.loads(identity.config), "the checkpoint", {}).model_dump(mode="json")
    except ConfigError:  # written by code that knew other keys
        return config
    data = config.model_dump(mode="json")
    for key in GROWTH:
        section, name = key.split(".")
        data[section][name] = before[section][name]
    if keys := data["federation"]["site_keys"]:
        data["federation"]["site_keys"] = keys[: data["federation"]["sites"]]
    return resolve(data, "the experiment before it was extended", {})
