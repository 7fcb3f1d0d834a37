"""ACL (arXiv 2304.09042): adapters for each task, kept apart, and so one pass through the network for each task."""

from __future__ import annotations

from collections.abc import Sequence

from dynammo_core.methods.adapters import adapt, adapters_of, grow_auxiliary, new_adapters, tuned
from dynammo_core.methods.base import Method
from dynammo_core.methods.settings.adapters import TaskHeadsSettings
from dynammo_core.methods.task_heads import (
    TASK_HEADS,
    SurestTask,
    balance,
    evaluation,
    grow_task_head,
    own_pass,
    start_head_from_auxiliary,
)
from dynammo_core.models.incremental_model import AdaptedBackbone, IncrementalModel, ParallelBackbones
from dynammo_core.plan import Archive, Evaluate, Remember, Stage

ADAPTER_SETS = "extractor.parts.*.adapters.*"


class ACL(Method[TaskHeadsSettings]):
    """A frozen backbone with an adapter set and a head for each task: T passes, which share the prefix.

    The head of task t sees the features of pass t alone. Deviations from the paper: padded convolutions without biases
    in the adapters, and a first head that starts anew.
    """

    name = "acl"
    paper_url = "https://arxiv.org/abs/2304.09042"
    freezes_backbone = True
    deployed = (ADAPTER_SETS, TASK_HEADS)
    decision = SurestTask(own_pass)

    def grow(self, model: IncrementalModel, task: int) -> None:
        added = AdaptedBackbone(tuned(model).backbone)
        added.adapters = new_adapters(added, self.params)
        model.extractor = ParallelBackbones([*(_passes(model) if task else ()), added])
        grow_auxiliary(model, self.stream, task)
        grow_task_head(model, self.stream, task, added.feature_dim)

    def begin_task(self, model: IncrementalModel, archive: Archive, task: int) -> None:
        self.grow(model, task)
        if task:
            before, newest = _passes(model)[-2:]
            adapters_of(newest).load_state_dict(adapters_of(before).state_dict())

    def evaluation(self) -> Evaluate:
        return evaluation(self.params, self.deployed, balance(self.params, ADAPTER_SETS, own_pass))

    def stages(self, task: int) -> Sequence[Stage]:
        own_set = f"extractor.parts.{task}.adapters.*"
        return (
            adapt(self.params, self.stream.classes(task), adapters=own_set, finish=start_head_from_auxiliary),
            balance(self.params, ADAPTER_SETS, own_pass),
            Remember(down=self.deployed),
        )


def _passes(model: IncrementalModel) -> list[AdaptedBackbone]:
    assert isinstance(model.extractor, ParallelBackbones)
    return model.extractor.all_parts
