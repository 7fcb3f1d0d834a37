"""What the methods with merged adapters share: a set for each task, inherited from the last, merged into one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from dynammo_core.merging.operators import merge
from dynammo_core.merging.task_sets import TaskSets
from dynammo_core.merging.task_vectors import TASK_VECTORS
from dynammo_core.methods.adapter_tuning import ADAPTERS, AdapterMethod, AdapterSettings
from dynammo_core.methods.base import Archive, Batch
from dynammo_core.models.adapters import AdapterSet
from dynammo_core.models.batch_statistics import batch_statistics
from dynammo_core.models.incremental_model import IncrementalModel
from dynammo_core.plan import Action, Stage

STATISTICS = "extractor.*adapters.*.running_*"
INITIAL = "initial."
SAMPLES = "samples"


class MergeSettings(AdapterSettings):
    """How the sets of all tasks become one."""

    merge: Literal["mean", "last", "weighted", "slerp", "task_arithmetic", "ties", "dare", "magmax", "breadcrumbs"] = (
        Field(default="mean", description="a name of the table MERGE_OPERATORS: how sets are merged across tasks")
    )
    merge_density: float = Field(
        default=0.2, gt=0, le=1, description="share of a task vector that ties, dare and breadcrumbs keep"
    )
    merge_scale: float = Field(
        default=1.0, gt=0, description="times the merged task vector, for operators on task vectors"
    )
    recalibrate: bool = Field(default=True, description="re-estimate the merged adapters' batch-norm statistics")


class MergedAdaptersMethod(AdapterMethod):
    """One pass through a frozen backbone with merged adapters, whatever the number of tasks.

    Deviations from DynaMMo (arXiv 2404.14099): padded convolutions without biases in the adapters; merged batch-norm
    statistics are re-estimated by forward passes over the balanced sets, because averaging weights collapses variances.
    """

    params: MergeSettings

    def adapter_stages(self, task: int) -> tuple[Stage, ...]:
        """Tune the task's set, then, once it is merged, count its statistics again."""
        adapt = self.adapt_stage()
        recalibrate = Stage("recalibrate", Action.SUMMARISE, (ADAPTERS,), (STATISTICS,))
        # Merging one set gives that set: its own statistics stand. Group norm has none.
        recalibrated = task and self.params.recalibrate and self.params.norm == "batch"
        return (adapt, recalibrate) if recalibrated else (adapt,)

    def begin_adapters(self, model: IncrementalModel, archive: Archive, task: int) -> None:
        """Each set inherits from the previous task's own set: sets that start afresh cancel when averaged."""
        if task:
            self.adapters(model).load_state_dict(_archived(archive, _set_prefix(task - 1)))
        elif self.params.merge in TASK_VECTORS:
            _put(archive, INITIAL, self.adapters(model).state_dict())

    def recalibrated(self, model: IncrementalModel, batches: Iterable[Batch], stage: Stage) -> dict[str, Tensor]:
        """The merged adapters' batch-norm statistics, re-estimated by forward passes and pooled over batches."""
        return batch_statistics(model, stage.up, batches, self.tuned(model))

    def note_counts(self, archive: Archive, task: int, stage: Stage, class_counts: Sequence[int]) -> None:
        if stage.name == "adapt" and self.params.merge == "weighted":
            own = sum(class_counts[label] for label in self.stream.classes(task))
            archive[f"{SAMPLES}{task}"] = torch.tensor([own], dtype=torch.float64)

    def merge_adapters(self, model: IncrementalModel, archive: Archive, task: int) -> None:
        """Put the set that was tuned aside, and in its place the merged one of all tasks."""
        _put(archive, _set_prefix(task), self.adapters(model).state_dict())
        tasks = range(task + 1)
        given = TaskSets(
            [_archived(archive, _set_prefix(earlier)) for earlier in tasks],
            initial=_archived(archive, INITIAL),
            samples=[archive[f"{SAMPLES}{t}"].item() for t in tasks] if self.params.merge == "weighted" else (),
            density=self.params.merge_density,
            scale=self.params.merge_scale,
        )
        self.adapters(model).load_state_dict(merge(self.params.merge, given))

    def adapters(self, model: IncrementalModel) -> AdapterSet:
        """The one set that the network has."""
        adapters = self.tuned(model).adapters
        assert adapters is not None
        return adapters


def _set_prefix(task: int) -> str:
    return f"set{task}."


def _put(archive: Archive, prefix: str, state: dict[str, Tensor]) -> None:
    archive.update({f"{prefix}{name}": tensor.clone() for name, tensor in state.items()})


def _archived(archive: Archive, prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in archive.items() if name.startswith(prefix)}
