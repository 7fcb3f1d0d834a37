"""DynaMMo (arXiv 2404.14099): adapters for each task, merged into one set, and heads balanced by replay."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from dynammo_core.methods.adapter_tuning import ADAPTERS
from dynammo_core.methods.base import Archive
from dynammo_core.methods.merged_adapters import MergedAdaptersMethod, MergeSettings
from dynammo_core.methods.task_heads import TASK_HEADS, TaskHeadsMethod, TaskHeadsSettings, start_head_from_auxiliary
from dynammo_core.models.incremental_model import IncrementalModel
from dynammo_core.plan import Action, Stage


class DynaMMoSettings(MergeSettings, TaskHeadsSettings):
    """Parameters of DynaMMo."""

    adapters: bool = Field(default=True, description="false: the control without adapters, heads on the bare backbone")


class DynaMMo(MergedAdaptersMethod, TaskHeadsMethod):
    """A frozen backbone with one merged adapter set, and one head a task.

    Deviations from the paper: those of `TaskHeadsMethod` and of `MergedAdaptersMethod`.
    """

    name = "dynammo"
    paper_url = "https://arxiv.org/abs/2404.14099"
    Params = DynaMMoSettings
    params: DynaMMoSettings
    deployed = (ADAPTERS, TASK_HEADS)

    def stages(self, task: int) -> Sequence[Stage]:
        balance = Stage(
            "balance", Action.FIT, (ADAPTERS, TASK_HEADS), (TASK_HEADS,), self.params.balance, inputs="features"
        )
        return (*self.adapter_stages(task), balance) if self.params.adapters else (balance,)

    @classmethod
    def tunes_adapters(cls, params: TaskHeadsSettings) -> bool:
        assert isinstance(params, DynaMMoSettings)
        return params.adapters

    def grow(self, model: IncrementalModel, task: int) -> None:
        if self.params.adapters and task == 0:
            self.tuned(model).adapters = self.new_adapters(self.tuned(model))
        self.grow_heads(model, task, model.feature_dim, tunes=self.params.adapters)

    def begin_task(self, model: IncrementalModel, archive: Archive, task: int) -> None:
        self.grow(model, task)
        if self.params.adapters:
            self.begin_adapters(model, archive, task)

    def finish_stage(self, model: IncrementalModel, archive: Archive, task: int, stage: Stage) -> None:
        super().finish_stage(model, archive, task, stage)
        if stage.name == "adapt":
            start_head_from_auxiliary(model, task)
