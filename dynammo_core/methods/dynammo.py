"""DynaMMo (arXiv 2404.14099): adapters for each task, merged into one set, and heads balanced by replay."""

from __future__ import annotations

from collections.abc import Sequence

from dynammo_core.methods.adapters import ADAPTERS, grow_auxiliary, new_adapters, tuned
from dynammo_core.methods.base import Method
from dynammo_core.methods.merged_adapters import adapt_and_merge, inherit, recalibrate
from dynammo_core.methods.settings.adapters import DynaMMoSettings
from dynammo_core.methods.task_heads import (
    TASK_HEADS,
    SurestTask,
    balance,
    evaluation,
    grow_task_head,
    start_head_from_auxiliary,
)
from dynammo_core.models.incremental_model import IncrementalModel
from dynammo_core.plan import Archive, Evaluate, Remember, Stage


class DynaMMo(Method[DynaMMoSettings]):
    """A frozen backbone with one merged adapter set, and one head a task.

    For each task: tune an adapter set, which inherits from the last one, and an auxiliary head; merge the sets of all
    tasks into one, so that the network stays one pass; train all task heads on a balanced set; remember exemplars. The
    head that is surest not to see "others" answers.

    Deviations from the paper: padded convolutions without biases in the adapters; batch-norm statistics of the merged
    set estimated anew; a first head that starts anew, since the auxiliary head it would copy has never seen "others".
    """

    name = "dynammo"
    paper_url = "https://arxiv.org/abs/2404.14099"
    freezes_backbone = True
    deployed = (ADAPTERS, TASK_HEADS)
    decision = SurestTask()

    def grow(self, model: IncrementalModel, task: int) -> None:
        if self.params.adapters:
            if task == 0:
                tuned(model).adapters = new_adapters(tuned(model), self.params)
            grow_auxiliary(model, self.stream, task)
        grow_task_head(model, self.stream, task, model.feature_dim)

    def begin_task(self, model: IncrementalModel, archive: Archive, task: int) -> None:
        self.grow(model, task)
        if self.params.adapters:
            inherit(self.params, model, archive, task)

    def evaluation(self) -> Evaluate:
        return evaluation(self.params, self.deployed, balance(self.params, ADAPTERS))

    def stages(self, task: int) -> Sequence[Stage]:
        params = self.params
        heads = (balance(params, ADAPTERS), Remember(down=self.deployed))
        if not params.adapters:
            return heads
        return (
            *adapt_and_merge(params, self.stream, task, then=start_head_from_auxiliary),
            *recalibrate(params, task),
            *heads,
        )
