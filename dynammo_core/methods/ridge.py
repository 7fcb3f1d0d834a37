"""A balanced classifier in closed form, from the exemplars and the new images of all sites: one solve a task."""

from __future__ import annotations

from collections.abc import Sequence

from dynammo_core.methods.base import Method
from dynammo_core.methods.closed_form import ANSWERS, LargestLabel, grow_ridge
from dynammo_core.methods.closed_form_sums import balanced_sums
from dynammo_core.methods.feature_maps import grow_frozen
from dynammo_core.methods.settings.closed_form import RidgeSettings
from dynammo_core.models.incremental_model import IncrementalModel
from dynammo_core.plan import Remember, Stage


class Ridge(Method[RidgeSettings]):
    """The balanced closed form on the frozen network."""

    name = "ridge"
    paper_url = "https://arxiv.org/abs/2404.14099"
    freezes_backbone = True
    deployed = ANSWERS
    decision = LargestLabel()

    def grow(self, model: IncrementalModel, task: int) -> None:
        grow_frozen(self.params, model, task)
        grow_ridge(model, self.stream, task)

    def stages(self, task: int) -> Sequence[Stage]:
        return (*balanced_sums(self), Remember(down=self.deployed))
