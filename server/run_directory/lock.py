"""One run at a time in a run directory: locks beside it, which end with the process that holds them."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

from dynammo_core.support.errors import RunError
from dynammo_core.support.locks import only_holder

REMEDY = "Wait until it ends, or stop that process; to run a copy beside it, give the experiment another `name`"


def only_run(directory: Path) -> AbstractContextManager[None]:
    """Keep a run directory for this process, which runs there or changes what a run has left.

    The lock lies beside the directory, since a start that is not a resumption moves an earlier directory aside.

    Raises:
        RunError: another process runs there; it says which.
        CheckpointError: the folder of the run directory cannot be written.
    """
    return _held(directory, "run", "goes on")


def only_start(directory: Path) -> AbstractContextManager[None]:
    """Keep a run directory for this process, which has another process run there.

    Raises:
        RunError: another process runs or starts a run there; it says which.
        CheckpointError: the folder of the run directory cannot be written.
    """
    return _held(directory, "start", "is started")


def _held(directory: Path, purpose: str, state: str) -> AbstractContextManager[None]:
    place = directory.resolve()
    return only_holder(
        place.with_name(f".{place.name}.{purpose}.lock"),
        lambda holder: RunError(f"the run in {directory} {state}: {holder}", remedy=REMEDY),
    )
