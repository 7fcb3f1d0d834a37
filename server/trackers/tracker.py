"""Define what a tracker does: it shows parameters, curves and files of one run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

Ending = Literal["finished", "failed", "stopped"]


@dataclass(frozen=True)
class TrackedRun:
    """Identifies a run to a tracker.

    Attributes:
        directory: directory of the run.
        experiment: name of the experiment, under which its runs lie together.
        known: `Tracker.id` of an interrupted run that goes on; empty for a run that was not tracked before.
        resumed_at: number of steps that were finished before.
    """

    directory: Path
    experiment: str
    known: str
    resumed_at: int


class Tracker(Protocol):
    """Shows one run in another program. Any error ends the tracking, never the run.

    Attributes:
        id: by which a resumed run is found again.
    """

    id: str

    def __init__(self, run: TrackedRun) -> None:
        """Begin to track a run, or go on."""
        ...

    def parameters(self, values: Mapping[str, str | float]) -> None:
        """Show the settings of a new run, by their dotted keys."""
        ...

    def points(self, at: int, values: Mapping[str, float]) -> None:
        """Add a point to each of some curves: `at` counts finished steps or, in curves of tests, finished tasks."""
        ...

    def file(self, path: Path) -> None:
        """Keep a copy of a result, if files can be kept."""
        ...

    def end(self, ending: Ending) -> None:
        """Write what is left; the run may be resumed."""
        ...
