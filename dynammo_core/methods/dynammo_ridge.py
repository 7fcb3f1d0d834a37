"""DynaMMo's merged adapters with a balanced classifier in closed form in place of its trained heads."""

from __future__ import annotations

from collections.abc import Sequence

from dynammo_core.methods.adapted_closed_form import AdaptedClosedForm, AdaptedClosedFormSettings
from dynammo_core.methods.base import Archive
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
