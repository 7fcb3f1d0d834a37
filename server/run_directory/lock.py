"""Locks that keep a second process out of a run directory; they end with the process that holds them."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

from dynammo_core.support.errors import RunError
from dynammo_core.support.locks import only_holder

REMEDY = "Wait for it to end, or stop that process; to run a copy beside it, give the experiment another `name`"


def only_run(directory: Path) -> AbstractContextManager[None]:
    """Reserve a run directory for this process, which runs in it or changes the files of its run.

    The lock lies beside the directory, because a new run moves the directory of an earlier one aside.

    Raises:
        RunError: another process holds it; the message names that process.
        CheckpointError: the folder of the run directory cannot be written.
    """
    return _held(directory, "run", "is in progress")


def only_start(directory: Path) -> AbstractContextManager[None]:
    """Reserve a run directory for this process, which starts another process that runs in it.

    Raises:
        RunError: another process holds it; the message names that process.
        CheckpointError: the folder of the run directory cannot be written.
    """
    return _held(directory, "start", "is being started")


def _held(directory: Path, purpose: str, state: str) -> AbstractContextManager[None]:
    place = directory.resolve()
    return only_holder(
        place.with_name(f".{place.name}.{purpose}.lock"),
        lambda holder: RunError(f"the run in {directory} {state}: {holder}", remedy=REMEDY),
    )
