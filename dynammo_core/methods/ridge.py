"""A balanced classifier in closed form, from the exemplars and the new images of all sites: one solve a task."""

from __future__ import annotations

from collections.abc import Sequence

from dynammo_core.data.samples import Samples
from dynammo_core.methods.base import Archive, Rehearsal
from dynammo_core.methods.closed_form import HEAD, SUMS, ClosedFormMethod, ridge_head
from dynammo_core.models.incremental_model import IncrementalModel
from dynammo_core.plan import Action, Stage


class Ridge(ClosedFormMethod):
    """Each class weighs the same, however many images of it there are and wherever they lie.

    Sites first count, then sum with weights n / (C n_c) that the server makes of the counts. The result is that of
    pooling all sites' exemplars and new images, whatever the split.
    """

    name = "ridge"
    paper_url = "https://arxiv.org/abs/2404.14099"

    def stages(self, task: int) -> Sequence[Stage]:
        return (
            Stage("count", Action.SUMMARISE, (), (f"{HEAD}.counts",), inputs="features"),
            Stage("sum", Action.SUMMARISE, (f"{HEAD}.sample_weight",), SUMS, inputs="features"),
        )

    def training_set(self, stage: Stage, rehearsal: Rehearsal) -> Samples:
        return Samples.concatenate([rehearsal.new, rehearsal.memory])

    def finish_stage(self, model: IncrementalModel, archive: Archive, task: int, stage: Stage) -> None:
        head = ridge_head(model)
        if stage.name == "count":
            present = head.counts > 0
            balanced = head.counts.sum() / (present.sum() * head.counts.clamp_min(1))
            head.sample_weight.copy_(balanced * present)
        elif stage.name == "sum":
            self.solve(model)
