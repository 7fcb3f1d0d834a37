"""Say which task's model is deployed, the one that `export` and `predict` take, and deploy another by hand."""

from __future__ import annotations

import json
from typing import Literal

from dynammo_core.deployed.model_files import FACTS, WEIGHTS
from dynammo_core.support.errors import ConfigError, RunError
from server.run_directory.directory import RunDirectory
from server.run_directory.lock import only_run

SUMMARY = "summary.json"


def model_folder(task: int) -> str:
    """Return the folder in a run directory that keeps the model after a task, counted from 0."""
    return f"models/task-{task + 1:02d}/"


def deployed_task(directory: RunDirectory) -> int | None:
    """Return the task, counted from 0, after which the deployed model was made; None before the first.

    Raises:
        RunError: `model.json` cannot be read.
    """
    file = directory.path / FACTS
    if not file.exists():
        return None
    try:
        return int(json.loads(file.read_text(encoding="utf-8"))["lineage"]["after_task"]) - 1
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"{file} cannot be read ({error!r})", remedy="Restore it, or deploy a model by `dynammo-server rollback`"
        ) from error


def newest_task(directory: RunDirectory) -> int:
    """Return the last task, counted from 0, of which there is a model.

    Raises:
        ConfigError: there is none.
    """
    there = [int(path.name.removeprefix("task-")) for path in (directory.path / "models").glob("task-*")]
    if not there:
        raise ConfigError(f"no task is finished in {directory.path}", accepted="a run that has a model")
    return max(there) - 1


def deploy(directory: RunDirectory, task: int, event: Literal["rolled_back", "released"], by: str) -> None:
    """Make the model after a task, counted from 0, the deployed one, and log it; the run itself does not change.

    Raises:
        ConfigError: the run does not have a model after that task.
        RunError: the run is in progress.
    """
    folder = directory.path / model_folder(task)
    if not (folder / WEIGHTS).is_file():
        there = sorted(path.name for path in (directory.path / "models").glob("task-*"))
        raise ConfigError(f"there is no model after task {task + 1} in {directory.path}", accepted=", ".join(there))
    with only_run(directory.path):
        for name in (WEIGHTS, FACTS):
            directory.write(name, (folder / name).read_bytes())
        directory.log(event, task=task, by=by)
