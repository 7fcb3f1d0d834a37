"""What the methods with merged adapters share: a set for each task, inherited from the last, merged into one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor

from dynammo_core.aggregation.batch_norm import is_batch_norm_statistic
from dynammo_core.configuration.federation import FederationSettings
from dynammo_core.configuration.settings import BackboneSettings, MethodSettings
from dynammo_core.data.samples import Samples
from dynammo_core.merging.fisher import comparable, diagonal_fisher
from dynammo_core.merging.operators import MERGE_OPERATORS, merge
from dynammo_core.merging.task_sets import TaskSets
from dynammo_core.merging.task_vectors import TASK_VECTORS
from dynammo_core.methods.adapter_tuning import ADAPTERS, AdapterMethod, AdapterSettings
from dynammo_core.methods.base import Archive, Batch, Rehearsal
from dynammo_core.models.adapters import AdapterSet, folded_alphas
from dynammo_core.models.backbones import BACKBONES
from dynammo_core.models.batch_statistics import batch_statistics
from dynammo_core.models.incremental_model import IncrementalModel, matching
from dynammo_core.plan import Action, Stage
from dynammo_core.support.errors import unknown_name

STATISTICS = "extractor.*adapters.*.running_*"
PARAMETERS = tuple(f"extractor.*adapters.*.{kind}" for kind in ("alpha", "weight", "bias"))
INITIAL = "initial."
SAMPLES = "samples"
WEIGHTED = "weighted"
FISHER = "fisher"
"""The operator, its stage, and where the archive keeps what that stage brings."""


class MergeSettings(AdapterSettings):
    """How the sets of all tasks become one."""

    merge: str | tuple[str, ...] = Field(
        default="mean",
        description="how sets are merged across tasks: a name of the table MERGE_OPERATORS, or a list with a name for "
        "each insertion point of the backbone, first to last",
    )
    merge_density: float = Field(
        default=0.2, gt=0, le=1, description="share of a task vector that ties, dare and breadcrumbs keep"
    )
    merge_scale: float = Field(
        default=1.0, gt=0, description="times the merged task vector, for operators on task vectors"
    )
    merge_alpha: Literal["average", "fold"] = Field(
        default="average",
        description="an adapter's learnt scale; average: by itself; fold: as part of the last norm that it multiplies",
    )
    recalibrate: bool = Field(default=True, description="re-estimate the merged adapters' batch-norm statistics")

    @field_validator("merge")
    @classmethod
    def _known(cls, merge: str | tuple[str, ...]) -> str | tuple[str, ...]:
        for name in (merge,) if isinstance(merge, str) else merge:
            if name not in MERGE_OPERATORS:
                unknown = unknown_name("merge operator", name, MERGE_OPERATORS)
                raise ValueError(f"{unknown}; accepted: {', '.join(MERGE_OPERATORS)}")
        return merge

    @property
    def operators(self) -> frozenset[str]:
        """The names of all operators in use."""
        return frozenset([self.merge] if isinstance(self.merge, str) else self.merge)


class MergedAdaptersMethod(AdapterMethod):
    """One pass through a frozen backbone with merged adapters, whatever the number of tasks.

    Deviations from DynaMMo (arXiv 2404.14099): padded convolutions without biases in the adapters; merged batch-norm
    statistics are re-estimated by forward passes over the balanced sets, because averaging weights collapses variances.
    """

    params: MergeSettings

    @classmethod
    def misfit(cls, params: MethodSettings, federation: FederationSettings, backbone: BackboneSettings) -> str:
        assert isinstance(params, MergeSettings)
        spec = BACKBONES.get(backbone.name)
        if not isinstance(params.merge, str) and spec and len(params.merge) != len(spec.channels):
            return (
                f"merge names {len(params.merge)} operators, and {backbone.name} has {len(spec.channels)} insertion "
                "points; give a name for each of them, or one name for all"
            )
        if FISHER in params.operators:
            if federation.compression != "none":
                return (
                    f"merge: {FISHER} does not go with federation.compression: {federation.compression}: it "
                    "rounds squared gradients, which are small, to 0, or tells their difference from weights; take none"
                )
            if federation.aggregator == "norm_clipping":
                return (
                    f"merge: {FISHER} does not go with federation.aggregator: norm_clipping: squared gradients are no "
                    "update of the weights, whose length could be bounded; take another"
                )
        return ""

    @classmethod
    def obstacle_to_privacy(cls, params: MethodSettings, mechanism: str) -> str:
        assert isinstance(params, MergeSettings)
        if FISHER in params.operators:
            return "no noise hides an image in the mean of squared gradients; take another method.merge than fisher"
        if mechanism == "client" and WEIGHTED in params.operators:
            return (
                "its weights are the exact numbers of images of all sites, and the merged adapters betray them; take "
                "another method.merge than weighted"
            )
        return super().obstacle_to_privacy(params, mechanism)

    def adapter_stages(self, task: int) -> tuple[Stage, ...]:
        """Tune the task's set, tell what its entries weigh, then, once it is merged, count its statistics again."""
        adapt = self.adapt_stage()
        fisher = Stage(FISHER, Action.SUMMARISE, adapt.down, PARAMETERS, inputs="prefix", squares=True)
        recalibrate = Stage("recalibrate", Action.SUMMARISE, (ADAPTERS,), (STATISTICS,))
        # Merging one set gives that set: its own statistics stand. Group norm has none.
        recalibrated = task and self.params.recalibrate and self.params.norm == "batch"
        tuning = (adapt, fisher) if FISHER in self.params.operators else (adapt,)
        return (*tuning, recalibrate) if recalibrated else tuning

    def begin_adapters(self, model: IncrementalModel, archive: Archive, task: int) -> None:
        """Each set inherits from the previous task's own set: sets that start afresh cancel when averaged."""
        if task:
            self.adapters(model).load_state_dict(_archived(archive, _set_prefix(task - 1)))
        elif self.params.operators & TASK_VECTORS.keys():
            _put(archive, INITIAL, self.adapters(model).state_dict())

    def training_set(self, stage: Stage, rehearsal: Rehearsal) -> Samples:
        if stage.name in ("adapt", FISHER):
            return self.adapting_set(rehearsal)
        return rehearsal.balanced() if stage.name == "recalibrate" else super().training_set(stage, rehearsal)

    def summarise(self, model: IncrementalModel, batches: Iterable[Batch], stage: Stage) -> dict[str, Tensor]:
        """The merged adapters' batch-norm statistics, pooled over batches; or the tuned ones' Fisher information."""
        if stage.name == "recalibrate":
            return batch_statistics(model, stage.up, batches, self.tuned(model))
        if stage.name == FISHER:
            names = matching(model.state_dict(), stage.up)
            return diagonal_fisher(model, names, lambda inputs: self.auxiliary_logits(model, inputs, stage), batches)
        return super().summarise(model, batches, stage)

    def note_counts(self, archive: Archive, task: int, stage: Stage, class_counts: Sequence[int]) -> None:
        if stage.name == "adapt" and WEIGHTED in self.params.operators:
            own = sum(class_counts[label] for label in self.stream.classes(task))
            archive[f"{SAMPLES}{task}"] = torch.tensor([own], dtype=torch.float64)

    def finish_stage(self, model: IncrementalModel, archive: Archive, task: int, stage: Stage) -> None:
        """Put aside what the stage brought; with the last of it, put in its place the merged set of all tasks."""
        weighed = FISHER in self.params.operators
        if stage.name == "adapt":
            tuned = self.adapters(model).state_dict()
            _put(archive, _set_prefix(task), tuned)
            if weighed:  # sites derive by what will be merged
                self.adapters(model).load_state_dict(self._prepared(tuned))
        if stage.name == FISHER:  # sites have answered under the adapters' names
            state = self.adapters(model).state_dict()
            answered = {name: tensor for name, tensor in state.items() if not is_batch_norm_statistic(name)}
            _put(archive, _fisher_prefix(task), comparable(answered))
        if stage.name == (FISHER if weighed else "adapt"):
            self.merge_adapters(model, archive, task)
        super().finish_stage(model, archive, task, stage)

    def merge_adapters(self, model: IncrementalModel, archive: Archive, task: int) -> None:
        """Merge the archived sets of all tasks into the network."""
        tasks, operators = range(task + 1), self.params.operators
        sets = [_archived(archive, _set_prefix(earlier)) for earlier in tasks]
        given = TaskSets(
            [self._prepared(own) for own in sets] if task else sets,
            initial=_archived(archive, INITIAL),
            samples=[archive[f"{SAMPLES}{t}"].item() for t in tasks] if WEIGHTED in operators else (),
            importance=[_archived(archive, _fisher_prefix(t)) for t in tasks] if FISHER in operators else (),
            density=self.params.merge_density,
            scale=self.params.merge_scale,
        )
        self.adapters(model).load_state_dict(merge(self.params.merge, given))

    def _prepared(self, own: dict[str, Tensor]) -> dict[str, Tensor]:
        """A set as it is merged: it computes the same."""
        return folded_alphas(own) if self.params.merge_alpha == "fold" else own

    def adapters(self, model: IncrementalModel) -> AdapterSet:
        """The one set that the network has."""
        adapters = self.tuned(model).adapters
        assert adapters is not None
        return adapters


def _set_prefix(task: int) -> str:
    return f"set{task}."


def _fisher_prefix(task: int) -> str:
    return f"{FISHER}{task}."


def _put(archive: Archive, prefix: str, state: dict[str, Tensor]) -> None:
    archive.update({f"{prefix}{name}": tensor.clone() for name, tensor in state.items()})


def _archived(archive: Archive, prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in archive.items() if name.startswith(prefix)}
