"""DynaMMo's merged adapters with a balanced classifier in closed form in place of its trained heads."""

from __future__ import annotations

from collections.abc import Sequence

from dynammo_core.configuration.federation import FederationSettings
from dynammo_core.configuration.settings import BackboneSettings
from dynammo_core.methods.adapted_closed_form import (
    DEPLOYED,
    NEEDED,
    AdaptedClosedFormSettings,
    grow_adapted_scales,
    not_accounted,
)
from dynammo_core.methods.adapters import grow_auxiliary
from dynammo_core.methods.base import Method
from dynammo_core.methods.closed_form import (
    LargestLabel,
    grow_ridge,
    misfit_of_memories,
)
from dynammo_core.methods.closed_form_sums import balanced_sums
from dynammo_core.methods.governance import Governance
from dynammo_core.methods.merged_adapters import (
    MergeSettings,
    adapt_and_merge,
    inherit,
    misfit_of_merge,
    obstacle_of_merge,
    recalibrate,
)
from dynammo_core.models.incremental_model import IncrementalModel
from dynammo_core.plan import Archive, Remember, Stage


class DynaMMoRidgeSettings(MergeSettings, AdaptedClosedFormSettings):
    """Parameters of merged adapters, and of the classifier on their features."""


def obstacle_to_privacy(params: DynaMMoRidgeSettings, mechanism: str) -> str:
    """Explain what of the merge, or of adapters and sums together, cannot be private."""
    return obstacle_of_merge(params, mechanism) or not_accounted(params, mechanism)


def misfit(params: DynaMMoRidgeSettings, federation: FederationSettings, backbone: BackboneSettings) -> str:
    """Explain what of the merge, or of the sums, does not go with those sections."""
    return misfit_of_merge(params, federation, backbone) or misfit_of_memories(params, federation, backbone)


class DynaMMoRidge(Method[DynaMMoRidgeSettings]):
    """Stage 1 and the merge are DynaMMo's; stage 2 is one exact solve on the exemplars and new images of all sites.

    Features are summed anew in each task, from what the sites still hold: merged adapters change them.
    """

    name = "dynammo_ridge"
    paper_url = "https://arxiv.org/abs/2404.14099"
    freezes_backbone = True
    deployed = DEPLOYED
    decision = LargestLabel()
    governance = Governance(obstacle_to_privacy=obstacle_to_privacy, misfit=misfit)

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
