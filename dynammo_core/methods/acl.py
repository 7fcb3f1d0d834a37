"""ACL (arXiv 2304.09042): adapters for each task, kept apart, and so one pass through the network for each task."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from dynammo_core.methods.adapter_tuning import AUXILIARY
from dynammo_core.methods.base import Archive
from dynammo_core.methods.task_heads import (
    TASK_HEADS,
    TaskHeadsMethod,
    TaskHeadsSettings,
    start_head_from_auxiliary,
)
from dynammo_core.models.incremental_model import AdaptedBackbone, IncrementalModel, ParallelBackbones
from dynammo_core.plan import Action, Stage

ADAPTER_SETS = "extractor.parts.*.adapters.*"


class ACL(TaskHeadsMethod):
    """A frozen backbone with an adapter set and a head for each task: T passes, which share the prefix.

    The head of task t sees the features of pass t alone. Deviations from the paper: those of `TaskHeadsMethod`, and
    padded convolutions without biases in the adapters.
    """

    name = "acl"
    paper_url = "https://arxiv.org/abs/2304.09042"
    Params = TaskHeadsSettings
    params: TaskHeadsSettings
    deployed = (ADAPTER_SETS, TASK_HEADS)

    def stages(self, task: int) -> Sequence[Stage]:
        adapted = (f"extractor.parts.{task}.adapters.*", f"heads.{AUXILIARY}.*")
        return (
            Stage("adapt", Action.FIT, adapted, adapted, self.params.adapt, inputs="prefix"),
            Stage(
                "balance", Action.FIT, (ADAPTER_SETS, TASK_HEADS), (TASK_HEADS,), self.params.balance, inputs="features"
            ),
        )

    def grow(self, model: IncrementalModel, task: int) -> None:
        earlier = [] if task == 0 else _parts(model)
        backbone = self.tuned(model).backbone
        added = AdaptedBackbone(backbone)
        added.adapters = self.new_adapters(added)
        model.extractor = ParallelBackbones([*earlier, added])
        self.grow_heads(model, task, added.feature_dim)

    def begin_task(self, model: IncrementalModel, archive: Archive, task: int) -> None:
        self.grow(model, task)
        if task:
            newest, before = (part.adapters for part in reversed(_parts(model)[-2:]))
            assert newest is not None and before is not None
            newest.load_state_dict(before.state_dict())

    def finish_stage(self, model: IncrementalModel, archive: Archive, task: int, stage: Stage) -> None:
        if stage.name == "adapt":
            start_head_from_auxiliary(model, task)

    def view(self, features: Tensor, task: int, tasks: int) -> Tensor:
        return features.chunk(tasks, dim=1)[task]


def _parts(model: IncrementalModel) -> list[AdaptedBackbone]:
    assert isinstance(model.extractor, ParallelBackbones)
    return model.extractor.all_parts
