"""Sums of everything ever seen, exact over sites, tasks and class order: no exemplars, no gradients."""

from __future__ import annotations

from collections.abc import Sequence

from dynammo_core.methods.base import Method
from dynammo_core.methods.closed_form import ANSWERS, LargestLabel, grow_ridge
from dynammo_core.methods.closed_form_personal import evaluation
from dynammo_core.methods.closed_form_sums import streamed_sums
from dynammo_core.methods.feature_maps import grow_frozen
from dynammo_core.methods.rehearsal import everything_seen
from dynammo_core.methods.settings.closed_form import StreamingRidgeSettings
from dynammo_core.models.incremental_model import IncrementalModel
from dynammo_core.plan import Evaluate, Stage


class StreamingRidge(Method[StreamingRidgeSettings]):
    """The classifier is that of ridge regression on all images so far, although none of them is kept.

    Its statistics speak of all past data: a class of method of its own, and a privacy question of its own, as the Gram
    matrix of a site with few images can betray them. Source: recursive and analytic class-incremental learning (ACIL,
    Zhuang et al., arXiv 2205.14922), whose recursion over tasks is here a sum.
    """

    name = "streaming_ridge"
    paper_url = "https://arxiv.org/abs/2205.14922"
    freezes_backbone = True
    deployed = ANSWERS
    decision = LargestLabel()

    def grow(self, model: IncrementalModel, task: int) -> None:
        grow_frozen(self.params, model, task)
        grow_ridge(model, self.stream, task)

    def stages(self, task: int) -> Sequence[Stage]:
        return streamed_sums(self)

    def evaluation(self) -> Evaluate:
        return evaluation(self, everything_seen)
