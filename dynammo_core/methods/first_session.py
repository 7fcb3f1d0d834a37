"""Adapters tuned on the first task and then kept, and sums of everything ever seen on the features they give."""

from __future__ import annotations

from collections.abc import Sequence

from dynammo_core.methods.adapted_closed_form import DEPLOYED, NEEDED, grow_adapted_scales
from dynammo_core.methods.adapters import adapt, grow_auxiliary
from dynammo_core.methods.base import Method
from dynammo_core.methods.closed_form import LargestLabel, grow_ridge
from dynammo_core.methods.closed_form_personal import evaluation
from dynammo_core.methods.closed_form_sums import streamed_sums
from dynammo_core.methods.rehearsal import everything_seen
from dynammo_core.methods.settings.adapted_closed_form import FirstSessionSettings
from dynammo_core.models.incremental_model import IncrementalModel
from dynammo_core.plan import Evaluate, Stage


class FirstSession(Method[FirstSessionSettings]):
    """The network adapts to the first task's images; from then on its features are fixed, and their sums stay exact.

    Given the adapters, the classifier is that of pooling all images of all sites and tasks, whatever the split and the
    order. The bare network's features beside the adapted ones keep what a narrow first task would have spoilt. Source:
    first session adaptation (Panos et al., arXiv 2303.13199), there with linear discriminant analysis. Its sums speak
    of all past data, as those of `streaming_ridge` do.
    """

    name = "first_session"
    paper_url = "https://arxiv.org/abs/2303.13199"
    freezes_backbone = True
    deployed = DEPLOYED
    decision = LargestLabel()

    def grow(self, model: IncrementalModel, task: int) -> None:
        if task == 0:
            grow_adapted_scales(self.params, model)
            grow_auxiliary(model, self.stream, task)
        grow_ridge(model, self.stream, task)

    def stages(self, task: int) -> Sequence[Stage]:
        sums = streamed_sums(self, NEEDED)
        return sums if task else (adapt(self.params, self.stream.classes(task)), *sums)

    def evaluation(self) -> Evaluate:
        return evaluation(self, everything_seen)
