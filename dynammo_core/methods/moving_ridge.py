"""Merged adapters that go on adapting, and sums of everything ever seen, which are moved along with the features."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from torch import Tensor

from dynammo_core.methods.adapted_closed_form import DEPLOYED, NEEDED, grow_adapted_scales
from dynammo_core.methods.adapters import ADAPTERS, grow_auxiliary, tuned
from dynammo_core.methods.base import TEACHER_PREFIX, Method
from dynammo_core.methods.closed_form import LargestLabel, grow_ridge, ridge_head, scales
from dynammo_core.methods.closed_form_sums import (
    GRAM,
    PRODUCTS,
    SUMS,
    add_to_totals,
    resummed,
    streamed_sums,
    sums,
    sums_of,
    use_weights,
)
from dynammo_core.methods.merged_adapters import adapt_and_merge, forget_sets, inherit, recalibrate
from dynammo_core.methods.rehearsal import new_and_exemplars
from dynammo_core.methods.settings.adapted_closed_form import MovingRidgeSettings
from dynammo_core.models.heads import OTHERS
from dynammo_core.models.incremental_model import IncrementalModel
from dynammo_core.models.names import matching, remove, under
from dynammo_core.models.ridge.drift import Drift, estimate_drift
from dynammo_core.models.ridge.head import RidgeHead
from dynammo_core.plan import Archive, Carry, Remember, Stage, Summarise
from dynammo_core.support.errors import RunError

PAIRS = "pairs"
"""Name of the stage, and of the head that holds its sums: over old features beside new ones, all classes together."""
DRIFT, SUMMED = "drift", "summed"
"""Where the archive keeps, by task, how features changed with it, and the adapters that its images were summed with."""


class MovingRidge(Method[MovingRidgeSettings]):
    """Adapters are DynaMMo's, and change the features with every task; the sums of all past images follow.

    Sites send sums over the exemplars' and new images' features before and after the change, and the server estimates
    from them how the old sums would be under the new features (`models/ridge/drift.py`). So features adapt for ever,
    with the memory of exact sums, which no exemplars replace. How the features of a class drift beyond the map is lost;
    that its images vary there is not.
    """

    name = "moving_ridge"
    paper_url = "https://arxiv.org/abs/2404.14099"
    freezes_backbone = True
    deployed = DEPLOYED
    decision = LargestLabel()

    def grow(self, model: IncrementalModel, task: int) -> None:
        params = self.params
        if task == 0:
            if params.adapters:
                grow_adapted_scales(params, model)
            else:
                model.extractor = scales(params, tuned(model).backbone)
        if params.adapters:
            grow_auxiliary(model, self.stream, task)
        grow_ridge(model, self.stream, task)
        earlier, model.features_before = model.features_before or model.feature_dim, None
        if PAIRS in model.heads:  # of an earlier task, in a model that was built anew
            del model.heads[PAIRS]
        if self._moves(task):
            model.heads[PAIRS] = RidgeHead(earlier + model.feature_dim, (OTHERS,))

    def begin_task(self, model: IncrementalModel, archive: Archive, task: int) -> None:
        self.grow(model, task)
        if task in self.new_networks:
            forget_sets(archive)
        if self.params.adapters:
            inherit(self.params, model, archive, task)

    def keep_teacher(self, model: IncrementalModel, archive: Archive, task: int) -> None:
        """Keep the adapters that the sums were taken with: the features of the next task are compared with theirs."""
        remove(archive, TEACHER_PREFIX)
        state = model.state_dict()
        archive.update({f"{TEACHER_PREFIX}{name}": state[name].clone() for name in matching(state, NEEDED)})

    def stages(self, task: int) -> Sequence[Stage]:
        params = self.params
        adapted = (*adapt_and_merge(params, self.stream, task), *recalibrate(params, task)) if params.adapters else ()
        return (
            *adapted,
            *self._pairs(task),
            *(resummed(self, NEEDED) if params.past == "anew" else self._moved_sums()),
            Remember(down=self.deployed, finish=self.keep_teacher),
        )

    def _moves(self, task: int) -> bool:
        """Tell whether features change with a task, and the sums of past images with them."""
        changes = task > 0 and (self.params.adapters or task in self.new_networks)
        return changes and self.params.past == "moved"

    def _pairs(self, task: int) -> tuple[Stage, ...]:
        """List the stage in which sites sum over old features beside new ones, if the sums are to move."""
        if not self._moves(task):
            return ()
        stage = Summarise(
            PAIRS,
            down=(ADAPTERS, f"{TEACHER_PREFIX}{ADAPTERS}"),
            up=sums_of(PAIRS),
            inputs="features",
            beside_teacher=True,
            learns_from=new_and_exemplars,
            fewest_samples=1,
            computes=sums(PAIRS),
            finish=self.keep_drift,
        )
        return (stage,)

    def _moved_sums(self) -> tuple[Stage, ...]:
        """List the stages that sum over new images, to totals that move before, and from which records can be taken."""
        count, add = streamed_sums(self, NEEDED)
        return count, replace(add, finish=self.add_to_moved, carry=Carry(self.recall, self.forward))

    def keep_drift(self, model: IncrementalModel, archive: Archive, task: int) -> None:
        """Keep the change of features that the pairs show, for past sums, and for records that leave them later."""
        pairs, new = ridge_head(model, PAIRS), model.feature_dim
        old = pairs.weight.shape[1] - new
        if pairs.counts.any():
            drift = estimate_drift(pairs.gram, old, new, alike=task not in self.new_networks)
            archive.update({f"{DRIFT}{task}.{name}": tensor for name, tensor in drift.tensors().items()})
        del model.heads[PAIRS]  # it has served, and is as large as several networks

    def add_to_moved(self, model: IncrementalModel, archive: Archive, task: int) -> None:
        """Carry the totals over the change of features, add to them as `add_to_totals` does, and keep the adapters."""
        if task:
            archive[GRAM], archive[PRODUCTS] = self._moved(archive, archive[GRAM], archive[PRODUCTS], (task,))
        add_to_totals(self, model, archive, task)
        state = model.state_dict()
        archive.update({f"{SUMMED}{task}.{name}": state[name].clone() for name in matching(state, NEEDED)})

    def recall(self, model: IncrementalModel, archive: Archive, task: int) -> None:
        """Give a model the adapters, and the weights of classes, that the task's images were summed with.

        Raises:
            RunError: a version that did not keep these adapters summed the task's images.
        """
        kept = under(archive, f"{SUMMED}{task}.")
        names = matching(model.state_dict(), NEEDED)
        if missing := [name for name in names if name not in kept]:
            raise RunError(
                f"the checkpoint does not hold the adapters that images of task {task + 1} were summed with, such as "
                f"{missing[0]}: an earlier version summed them, so what a record brought cannot be computed again",
                remedy="To remove what this model has learnt from a record, start a new run without the record",
            )
        model.load_state_dict({name: kept[name] for name in names}, strict=False)
        use_weights(model, archive)

    def forward(self, model: IncrementalModel, archive: Archive, task: int, onto: IncrementalModel, now: int) -> None:
        """Carry sums under a task's features over all changes up to another task, into that task's model."""
        brought = ridge_head(model)
        gram, products = self._moved(archive, brought.gram, brought.products, range(task + 1, now + 1))
        for name, moved in zip(SUMS, (brought.counts, gram, products), strict=True):
            tensor = onto.state_dict()[name].zero_()
            tensor[tuple(slice(size) for size in moved.shape)] = moved

    def _moved(self, archive: Archive, gram: Tensor, products: Tensor, tasks: Iterable[int]) -> tuple[Tensor, Tensor]:
        """Carry sums over the changes of features that came with tasks."""
        for task in tasks:
            if kept := under(archive, f"{DRIFT}{task}."):
                gram, products = Drift.kept(kept).moved(gram, products, residual=self.params.residual)
        return gram, products
