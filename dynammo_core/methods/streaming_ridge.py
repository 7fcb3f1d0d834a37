"""Sums of everything ever seen, exact over sites, tasks and class order: no exemplars, no gradients."""

from __future__ import annotations

from collections.abc import Sequence

from dynammo_core.methods.base import Archive
from dynammo_core.methods.closed_form import SUMS, ClosedFormMethod, ridge_head
from dynammo_core.models.incremental_model import IncrementalModel
from dynammo_core.plan import Action, Stage


class StreamingRidge(ClosedFormMethod):
    """Every image is summed once, by its site, in the task that it arrives with; the server keeps the totals.

    The classifier is that of ridge regression on all images so far, although none of them is kept. Its statistics
    speak of all past data: a class of method of its own, and a privacy question of its own, as the Gram matrix of a
    site with few images can betray them. Source: recursive and analytic class-incremental learning (ACIL, Zhuang et
    al., arXiv 2205.14922), whose recursion over tasks is here a sum.
    """

    name = "streaming_ridge"
    paper_url = "https://arxiv.org/abs/2205.14922"
    uses_memory = False

    def stages(self, task: int) -> Sequence[Stage]:
        return (Stage("sum", Action.SUMMARISE, (), SUMS, inputs="features"),)

    def forget(self, task: int) -> Stage:
        return Stage("forget", Action.FORGET, (), SUMS, inputs="features")

    def finish_stage(self, model: IncrementalModel, archive: Archive, task: int, stage: Stage) -> None:
        if not stage.up:
            return
        state = model.state_dict()
        for name in SUMS:
            new = state[name]
            if name in archive:
                earlier = archive[name]
                new[tuple(slice(size) for size in earlier.shape)] += earlier
        if stage.action is Action.FORGET:
            ridge_head(model).clear_absent()
        archive.update({name: state[name].clone() for name in SUMS})
        self.solve(model)
