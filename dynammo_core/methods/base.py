"""A continual-learning method: its parameters, how its model grows, its stages in order, and how it answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import chain
from typing import ClassVar, Generic, Protocol, TypeVar, get_args

from dynammo_core.best_round import rounds_of, with_check
from dynammo_core.configuration.privacy import PrivacySettings
from dynammo_core.configuration.settings import MethodSettings
from dynammo_core.data.task_stream import TaskStream
from dynammo_core.methods.decisions import DecisionRule
from dynammo_core.models.incremental_model import IncrementalModel
from dynammo_core.plan import Archive, Evaluate, Remember, Stage, Step

TEACHER_PREFIX = "teacher."
"""Tensors of the archive under this prefix make the model of the previous task, for methods that distil."""

NO_PRIVACY = PrivacySettings()

SAID_BY_SETTINGS = frozenset(
    {"governance", "forgets", "outlives_network", "fitted_to", "misfit", "obstacle_to_privacy"}
)
"""What a method's settings say, and a method itself used to say: there nobody asks for it any more."""

P = TypeVar("P", bound=MethodSettings)


class Method(ABC, Generic[P]):
    """A class-incremental method; `class WA(Method[WASettings])` takes its parameters from the section `method`.

    Attributes:
        name: the method's name in configurations and tables.
        paper_url: where it is published.
        Params: type of the parameters, taken from the brackets.
        freezes_backbone: whether the pretrained network is never trained (and so never travels).
        new_networks: tasks, from 0, with which another network takes over; the experiment sets it.
        deployed: patterns of the tensors that prediction needs.
        decision: how the trained model answers.
    """

    name: ClassVar[str]
    paper_url: ClassVar[str]
    Params: ClassVar[type[MethodSettings]]
    freezes_backbone: ClassVar[bool] = False
    new_networks: frozenset[int] = frozenset()
    deployed: ClassVar[tuple[str, ...]] = ("extractor.*", "heads.*")
    decision: ClassVar[DecisionRule] = DecisionRule()

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if unheard := sorted(SAID_BY_SETTINGS & vars(cls).keys()):
            raise TypeError(
                f"the method {cls.__name__} says {', '.join(unheard)} itself, where nobody asks for it: its settings "
                "say `forgets`, `outlives_network`, `fitted_to`, `misfit` and `obstacle_to_privacy`, see "
                "docs/how-to/add-a-method.md"
            )
        for base in getattr(cls, "__orig_bases__", ()):
            for params in get_args(base):
                if isinstance(params, type) and issubclass(params, MethodSettings):
                    cls.Params = params

    def __init__(self, params: P, stream: TaskStream, privacy: PrivacySettings = NO_PRIVACY) -> None:
        self.params = params
        self.stream = stream
        self.privacy = privacy

    @abstractmethod
    def grow(self, model: IncrementalModel, task: int) -> None:
        """Give the model the structure it has in `task`, starting from that of the task before; server and sites."""

    @abstractmethod
    def stages(self, task: int) -> Sequence[Stage]:
        """List the stages of a task in order, without the evaluation that ends it."""

    def begin_task(self, model: IncrementalModel, archive: Archive, task: int) -> None:
        """Prepare the model at the server before the first stage of `task`; by default it only grows."""
        self.grow(model, task)

    def all_stages(self, task: int) -> Sequence[Stage]:
        """List every stage of a task: the method's own, with the checks of their rounds, then every site evaluates."""
        parts = (with_check(stage) for stage in self.stages(task))
        return (*chain.from_iterable(parts), self.evaluation())

    def evaluation(self) -> Evaluate:
        """Make the stage that ends each task, in which every site tests the model."""
        return Evaluate(down=self.deployed)

    @property
    def uses_memory(self) -> bool:
        """Whether sites keep exemplars."""
        return any(isinstance(stage, Remember) for stage in self.stages(0))


class StagePlanner(Protocol):
    """What `plan_steps` needs of a method."""

    def all_stages(self, task: int) -> Sequence[Stage]:
        """List every stage of a task, in order."""
        ...


def plan_steps(method: StagePlanner, tasks: int) -> tuple[Step, ...]:
    """List all steps of a run: for each task, each of its stages, each round."""
    order = [(task, stage, round_) for task in range(tasks) for stage, round_ in rounds_of(method.all_stages(task))]
    return tuple(Step(index, task, stage, round_) for index, (task, stage, round_) in enumerate(order))
