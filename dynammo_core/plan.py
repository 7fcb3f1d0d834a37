"""What happens in a run and in which order: stages as data, and the steps that they make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from dynammo_core.configuration.settings import Optimisation
from dynammo_core.models.incremental_model import Level


class Action(StrEnum):
    """What a site does in a stage."""

    FIT = "fit"
    SUMMARISE = "summarise"
    REMEMBER = "remember"
    EVALUATE = "evaluate"
    FORGET = "forget"


@dataclass(frozen=True)
class Stage:
    """One stage of a task: who does what, what travels down, and what alone may come back.

    Attributes:
        name: unique within a task, such as "adapt".
        action: what a site does.
        down: patterns of the tensor names that the server sends.
        up: patterns of the tensor names that a site returns; in a FIT stage these, and only these, are trained.
        optimisation: of a FIT stage.
        inputs: level from which each epoch starts; what lies before it is frozen in this stage and computed once.
        squares: what comes back are squares, under the names of the tensors that they weigh: none is below 0.
    """

    name: str
    action: Action
    down: tuple[str, ...]
    up: tuple[str, ...] = ()
    optimisation: Optimisation | None = None
    inputs: Level = "images"
    squares: bool = False

    @property
    def rounds(self) -> int:
        """Times that the stage goes to the sites and back."""
        return self.optimisation.rounds if self.optimisation else 1


@dataclass(frozen=True)
class Step:
    """One exchange between the server and all sites.

    Attributes:
        index: its place in the plan; of a correction, which stands in no plan, that of the last step done before it.
        round: counts from 0; of a correction its number in the run, from 1.
    """

    index: int
    task: int
    stage: Stage
    round: int

    @property
    def correction(self) -> int:
        """Its number, of a correction; 0 of a step of the plan."""
        return self.round if self.stage.action is Action.FORGET else 0

    @property
    def contribution(self) -> int:
        """What a site's answer is called where sums of such are kept: a step's by its index, a correction's below 0."""
        return -self.correction or self.index

    @property
    def is_last_round(self) -> bool:
        """Whether the stage ends with this step."""
        return self.round == self.stage.rounds - 1

    def as_fields(self) -> dict[str, int | str]:
        """The step for logs: task and round count from 0."""
        return {"task": self.task, "stage": self.stage.name, "round": self.round, "rounds": self.stage.rounds}


class StagePlanner(Protocol):
    """What `plan_steps` needs of a method."""

    def all_stages(self, task: int) -> Sequence[Stage]:
        """Every stage of a task, in order."""
        ...


def plan_steps(method: StagePlanner, tasks: int) -> tuple[Step, ...]:
    """All steps of a run: for each task, each of its stages, each round."""
    order = [
        (task, stage, round_)
        for task in range(tasks)
        for stage in method.all_stages(task)
        for round_ in range(stage.rounds)
    ]
    return tuple(Step(index, task, stage, round_) for index, (task, stage, round_) in enumerate(order))
