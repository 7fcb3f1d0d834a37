"""DynaMMo's merged adapters with a balanced classifier in closed form in place of its trained heads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor

from dynammo_core.data.samples import Samples
from dynammo_core.methods.adapted_closed_form import AdaptedClosedForm, AdaptedClosedFormSettings
from dynammo_core.methods.base import Archive, Batch, Rehearsal
from dynammo_core.methods.closed_form import BalancedClosedForm
from dynammo_core.methods.merged_adapters import MergedAdaptersMethod, MergeSettings
from dynammo_core.models.incremental_model import IncrementalModel
from dynammo_core.plan import Stage


class DynaMMoRidgeSettings(MergeSettings, AdaptedClosedFormSettings):
    """Parameters of merged adapters, and of the classifier on their features."""


class DynaMMoRidge(MergedAdaptersMethod, AdaptedClosedForm, BalancedClosedForm):
    """Stage 1 and the merge are DynaMMo's; stage 2 is one exact solve on the exemplars and new images of all sites.

    Features are summed anew in each task, from what the sites still hold: merged adapters change them.
    """

    name = "dynammo_ridge"
    paper_url = "https://arxiv.org/abs/2404.14099"
    Params = DynaMMoRidgeSettings
    params: DynaMMoRidgeSettings

    def stages(self, task: int) -> Sequence[Stage]:
        return (*self.adapter_stages(task), *super().stages(task))

    def grow(self, model: IncrementalModel, task: int) -> None:
        if task == 0:
            self.grow_extractor(model)
        self.grow_auxiliary(model, task, self.tuned(model).backbone.feature_dim)
        self.grow_classes(model, task)

    def begin_task(self, model: IncrementalModel, archive: Archive, task: int) -> None:
        self.grow(model, task)
        self.begin_adapters(model, archive, task)

    def training_set(self, stage: Stage, rehearsal: Rehearsal) -> Samples:
        if stage.name == "adapt":
            return self.adapting_set(rehearsal)
        return rehearsal.balanced() if stage.name == "recalibrate" else super().training_set(stage, rehearsal)

    def summarise(self, model: IncrementalModel, batches: Iterable[Batch], stage: Stage) -> dict[str, Tensor]:
        if stage.name == "recalibrate":
            return self.recalibrated(model, batches, stage)
        return super().summarise(model, batches, stage)

    def finish_stage(self, model: IncrementalModel, archive: Archive, task: int, stage: Stage) -> None:
        if stage.name == "adapt":
            self.merge_adapters(model, archive, task)
        super().finish_stage(model, archive, task, stage)
