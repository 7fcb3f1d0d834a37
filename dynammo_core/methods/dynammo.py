"""DynaMMo (arXiv 2404.14099): adapters for each task, merged into one set, and heads balanced by replay."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from dynammo_core.aggregation.batch_norm import pool_batch_norm
from dynammo_core.merging.operators import MERGE_OPERATORS
from dynammo_core.methods.base import Archive, Batch
from dynammo_core.methods.task_heads import (
    AUXILIARY,
    TASK_HEADS,
    TaskHeadsMethod,
    TaskHeadsSettings,
    start_head_from_auxiliary,
)
from dynammo_core.models.adapters import AdapterSet
from dynammo_core.models.incremental_model import IncrementalModel, matching
from dynammo_core.plan import Action, Stage

ADAPTERS = "extractor.adapters.*"
STATISTICS = "extractor.adapters.*.running_*"


class DynaMMoSettings(TaskHeadsSettings):
    """Parameters of DynaMMo."""

    adapters: bool = Field(default=True, description="false: the control without adapters, heads on the bare backbone")
    merge: Literal["mean", "last"] = Field(default="mean", description="merge operator across tasks")
    recalibrate: bool = Field(default=True, description="re-estimate the merged adapters' batch-norm statistics")


class DynaMMo(TaskHeadsMethod):
    """A frozen backbone with one merged adapter set, and one head a task.

    Deviations from the paper beside those of `TaskHeadsMethod`: padded convolutions without biases in the adapters;
    merged batch-norm statistics are re-estimated by forward passes over the balanced sets, because averaging weights
    collapses variances.
    """

    name = "dynammo"
    paper_url = "https://arxiv.org/abs/2404.14099"
    Params = DynaMMoSettings
    params: DynaMMoSettings
    deployed = (ADAPTERS, TASK_HEADS)

    def stages(self, task: int) -> Sequence[Stage]:
        adapted = (ADAPTERS, f"heads.{AUXILIARY}.*")
        adapt = Stage("adapt", Action.FIT, adapted, adapted, self.params.adapt, inputs="prefix")
        recalibrate = Stage("recalibrate", Action.SUMMARISE, (ADAPTERS,), (STATISTICS,))
        balance = Stage(
            "balance", Action.FIT, (ADAPTERS, TASK_HEADS), (TASK_HEADS,), self.params.balance, inputs="features"
        )
        if not self.params.adapters:
            return (balance,)
        # The mean of one set is that set: its own statistics stand. Group norm has none.
        recalibrated = task and self.params.recalibrate and self.params.norm == "batch"
        return (adapt, recalibrate, balance) if recalibrated else (adapt, balance)

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
        if self.params.adapters and task:
            # Each set inherits from the previous task's own set: sets that start afresh cancel when averaged.
            self._adapters(model).load_state_dict(_archived(archive, task - 1))

    def summarise(self, model: IncrementalModel, batches: Iterable[Batch], stage: Stage) -> dict[str, Tensor]:
        """The merged adapters' batch-norm statistics, re-estimated by forward passes and pooled over batches."""
        adapters = self._adapters(model).train()
        for module in adapters.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0  # the running statistics are then those of the last batch alone
        statistics: list[dict[str, Tensor]] = []
        sizes: list[float] = []
        for inputs, labels in batches:
            model.extractor(inputs)
            state = model.state_dict()
            statistics.append({name: state[name].clone() for name in matching(state, stage.up)})
            sizes.append(len(labels))
        return pool_batch_norm(statistics, sizes)

    def finish_stage(self, model: IncrementalModel, archive: Archive, task: int, stage: Stage) -> None:
        if stage.name != "adapt":
            return
        for name, tensor in self._adapters(model).state_dict().items():
            archive[f"{_set_prefix(task)}{name}"] = tensor.clone()
        sets = [_archived(archive, earlier) for earlier in range(task + 1)]
        self._adapters(model).load_state_dict(MERGE_OPERATORS[self.params.merge](sets))
        start_head_from_auxiliary(model, task)

    def _adapters(self, model: IncrementalModel) -> AdapterSet:
        adapters = self.tuned(model).adapters
        assert adapters is not None
        return adapters


def _set_prefix(task: int) -> str:
    return f"set{task}."


def _archived(archive: Archive, task: int) -> dict[str, Tensor]:
    prefix = _set_prefix(task)
    return {name.removeprefix(prefix): tensor for name, tensor in archive.items() if name.startswith(prefix)}
