"""A balanced classifier in closed form, from the exemplars and the new images of all sites: one solve a task."""

from __future__ import annotations

from collections.abc import Sequence

from dynammo_core.methods.base import Method
from dynammo_core.methods.closed_form import ANSWERS, LargestLabel, grow_answers, grow_ridge, solve, solve_near_earlier
from dynammo_core.methods.closed_form_sums import balanced_sums
from dynammo_core.methods.feature_maps import grow_frozen
from dynammo_core.methods.settings.closed_form import RidgeSettings
from dynammo_core.models.incremental_model import IncrementalModel
from dynammo_core.plan import Remember, Stage


class Ridge(Method[RidgeSettings]):
    """The balanced closed form on the frozen network.

    Of past tasks exemplars alone are left, and the classifier that was solved from all images of each. With
    `shrink_towards: earlier` that is where its weights start from, and the images change them as far as these can tell.
    """

    name = "ridge"
    paper_url = "https://arxiv.org/abs/2404.14099"
    freezes_backbone = True
    deployed = ANSWERS
    decision = LargestLabel()

    def grow(self, model: IncrementalModel, task: int) -> None:
        grow_frozen(self.params, model, task)
        (grow_answers if self._near_earlier else grow_ridge)(model, self.stream, task)

    def stages(self, task: int) -> Sequence[Stage]:
        sums = balanced_sums(self, finish=solve_near_earlier if self._near_earlier else solve)
        return (*sums, Remember(down=self.deployed))

    @property
    def _near_earlier(self) -> bool:
        return self.params.shrink_towards == "earlier"
