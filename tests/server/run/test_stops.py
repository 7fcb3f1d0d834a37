"""A run that is stopped again and again, at each kind of moment, and resumed each time, ends as if never stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from small_runs import SITES, Finished, Outcome, StopAt, Stopped, events, run_small, small_config

from dynammo_core.experiment import Experiment
from dynammo_core.plan import Step

Moment = tuple[int, int]
"""A step's index, and which of the events of that step it is, counted from 1."""
EVENTS_OF_A_STEP = SITES + 3
"""`step_started`, `asked`, an answer of each site, and `step_finished`, which comes before the checkpoint."""


def every_moment(steps: tuple[Step, ...]) -> Iterator[Moment]:
    for step in steps:
        yield from ((step.index, nth) for nth in range(1, EVENTS_OF_A_STEP + 1))


def moments_of_each_kind(steps: tuple[Step, ...]) -> Iterator[Moment]:
    """Yield the start, the first answer and the end of the first step, and of the last step of each stage."""
    last_of_stage = {step.stage.name: step.index for step in steps}
    for index in sorted({steps[0].index, *last_of_stage.values()}):
        yield from ((index, nth) for nth in (1, 3, EVENTS_OF_A_STEP))


@pytest.mark.parametrize(
    "moments", [moments_of_each_kind, pytest.param(every_moment, marks=pytest.mark.soak)], ids=["each kind", "all"]
)
@pytest.mark.parametrize("method", ["dynammo", "replay"])
def test_a_run_stopped_at_these_moments_in_turn_ends_as_if_never_stopped(
    finished: Finished, tmp_path: Path, method: str, moments: Callable[[tuple[Step, ...]], Iterator[Moment]]
) -> None:
    config = small_config(method)
    steps = tuple(Experiment(config).steps)
    directory: Path | None = None
    for moment in moments(steps):
        with pytest.raises(Stopped):
            run_small(config, tmp_path, resume=directory, listeners=[StopAt(*moment)])
        directory = directory or resumable(tmp_path)
    assert directory is not None
    run_small(config, tmp_path, resume=directory)
    assert Outcome.of(directory) == finished(method).outcome
    resumed = [event["resumed_at"] for event in events(directory, "run_started")]
    assert resumed == sorted(resumed)
    assert resumed[-1] == len(steps) - 1


def resumable(runs: Path) -> Path | None:
    """Return the run's directory once it can be resumed; before the first checkpoint a run starts anew."""
    (directory,) = (path for path in runs.iterdir() if "." not in path.name)
    return directory if (directory / "checkpoints").exists() else None
