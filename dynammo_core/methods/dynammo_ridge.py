"""DynaMMo's merged adapters with a balanced classifier in closed form in place of its trained heads."""

from __future__ import annotations

from collections.abc import Sequence

from dynammo_core.methods.adapted_closed_form import DEPLOYED, NEEDED, grow_adapted_scales
from dynammo_core.methods.adapters import grow_auxiliary
from dynammo_core.methods.base import Method
from dynammo_core.methods.closed_form import LargestLabel, grow_ridge
from dynammo_core.methods.closed_form_sums import balanced_sums
from dynammo_core.methods.merged_adapters import adapt_and_merge, inherit, recalibrate
from dynammo_core.methods.settings.adapted_closed_form import DynaMMoRidgeSettings
from dynammo_core.models.incremental_model import IncrementalModel
from dynammo_core.plan import Archive, Remember, Stage


class DynaMMoRidge(Method[DynaMMoRidgeSettings]):
    """Stage 1 and the merge are DynaMMo's; stage 2 is one exact solve on the exemplars and new images of all sites.

    Features are summed anew in each task, from what the sites still hold: merged adapters change them.
    """

    name = "dynammo_ridge"
    paper_url = "https://arxiv.org/abs/2404.14099"
    freezes_backbone = True
    deployed = DEPLOYED
    decision = LargestLabel()

    def grow(self, model: IncrementalModel, task: int) -> None:
        if task == 0:
            grow_adapted_scales(self.params, model)
        grow_auxiliary(model, self.stream, task)
        grow_ridge(model, self.stream, task)

    def begin_task(self, model: IncrementalModel, archive: Archive, task: int) -> None:
        self.grow(model, task)
        inherit(self.params, model, archive, task)

    def stages(self, task: int) -> Sequence[Stage]:
        return (
            *adapt_and_merge(self.params, self.stream, task),
            *recalibrate(self.params, task),
            *balanced_sums(self, NEEDED),
            Remember(down=self.deployed),
        )
