"""DynaMMo (arXiv 2404.14099): adapters for each task, merged into one set, and heads balanced by replay."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from dynammo_core.aggregation.batch_norm import pool_batch_norm
from dynammo_core.data.samples import Samples
from dynammo_core.merging.operators import MERGE_OPERATORS
from dynammo_core.methods.base import Archive, Batch, LossContext, Method, Prediction, Rehearsal
from dynammo_core.models.adapters import AdapterSet
from dynammo_core.models.heads import OTHERS, LinearHead
from dynammo_core.models.incremental_model import IncrementalModel, matching
from dynammo_core.plan import Action, Stage
from dynammo_core.settings import MethodSettings, Optimisation

AUXILIARY = "auxiliary"
ADAPTERS = "extractor.adapters.*"
STATISTICS = "extractor.adapters.*.running_*"
TASK_HEADS = "heads.task*"


class DynaMMoSettings(MethodSettings):
    """Parameters of DynaMMo."""

    adapters: bool = Field(default=True, description="false: the control without adapters, heads on the bare backbone")
    alpha: float = Field(default=0.02, gt=0, description="weight of an adapter at the start; learnt from there on")
    merge: Literal["mean", "last"] = Field(default="mean", description="merge operator across tasks")
    recalibrate: bool = Field(default=True, description="re-estimate the merged adapters' batch-norm statistics")
    adapt: Optimisation = Optimisation(epochs=10, learning_rate=0.02)
    balance: Optimisation = Optimisation(epochs=50, optimizer="adam", learning_rate=1e-3, weight_decay=0.0)


class DynaMMo(Method):
    """A frozen backbone with one merged adapter set, and one head a task with a row for all other classes.

    Deviations from the paper: padded convolutions without biases in the adapters; the first task's head starts
    anew, since the auxiliary head it would copy has never seen "others"; merged batch-norm statistics are
    re-estimated by forward passes over the balanced sets, because averaging weights collapses variances.
    """

    name = "dynammo"
    paper_url = "https://arxiv.org/abs/2404.14099"
    Params = DynaMMoSettings
    params: DynaMMoSettings
    freezes_backbone = True
    deployed = (ADAPTERS, TASK_HEADS)

    def stages(self, task: int) -> Sequence[Stage]:
        adapted = (ADAPTERS, f"heads.{AUXILIARY}.*")
        adapt = Stage("adapt", Action.FIT, adapted, adapted, self.params.adapt, inputs="prefix")
        recalibrate = Stage("recalibrate", Action.SUMMARISE, (ADAPTERS,), (STATISTICS,))
        balance = Stage(
            "balance", Action.FIT, (ADAPTERS, TASK_HEADS), (TASK_HEADS,), self.params.balance, inputs="features"
        )
        if not self.params.adapters:
            return (balance,)
        # The mean of one set is that set: its own statistics stand.
        return (adapt, recalibrate, balance) if task and self.params.recalibrate else (adapt, balance)

    def grow(self, model: IncrementalModel, task: int) -> None:
        if self.params.adapters:
            if task == 0:
                model.extractor.adapters = AdapterSet(model.extractor.backbone.channels, self.params.alpha)
            model.heads[AUXILIARY] = LinearHead(model.feature_dim, (*self.stream.classes(task), OTHERS))
        model.heads[_head_name(task)] = LinearHead(model.feature_dim, (*self.stream.classes(task), OTHERS))

    def begin_task(self, model: IncrementalModel, archive: Archive, task: int) -> None:
        self.grow(model, task)
        if self.params.adapters and task:
            # Each set inherits from the previous task's own set: sets that start afresh cancel when averaged.
            _adapters(model).load_state_dict(_archived(archive, task - 1))

    def training_set(self, stage: Stage, rehearsal: Rehearsal) -> Samples:
        if stage.name != "adapt":
            return rehearsal.balanced()
        if not len(rehearsal.new):
            return Samples.empty()
        return Samples.concatenate([rehearsal.new, rehearsal.memory])

    def loss(self, model: IncrementalModel, inputs: Tensor, labels: Tensor, context: LossContext) -> Tensor:
        """Stage 1: cross-entropy of the auxiliary head; stage 2: the sum of all task heads' cross-entropies."""
        features = model.extractor.embed(inputs, start=context.stage.inputs)
        heads = [model.head(AUXILIARY)] if context.stage.name == "adapt" else _task_heads(model)
        losses = [nn.functional.cross_entropy(head(features), head.targets(labels)) for head in heads]
        return torch.stack(losses).sum()

    def summarise(self, model: IncrementalModel, batches: Iterable[Batch], stage: Stage) -> dict[str, Tensor]:
        """The merged adapters' batch-norm statistics, re-estimated by forward passes and pooled over batches."""
        adapters = _adapters(model).train()
        for module in adapters.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0  # the running statistics are then those of the last batch alone
        statistics: list[dict[str, Tensor]] = []
        sizes: list[float] = []
        for inputs, labels in batches:
            model.extractor(inputs)
            state = model.state_dict()
            statistics.append({name: state[name].clone() for name in matching(state, stage.up)})
            sizes.append(len(labels))
        return pool_batch_norm(statistics, sizes)

    def finish_stage(self, model: IncrementalModel, archive: Archive, task: int, stage: Stage) -> None:
        if stage.name != "adapt":
            return
        for name, tensor in _adapters(model).state_dict().items():
            archive[f"{_set_prefix(task)}{name}"] = tensor.clone()
        sets = [_archived(archive, earlier) for earlier in range(task + 1)]
        _adapters(model).load_state_dict(MERGE_OPERATORS[self.params.merge](sets))
        if task:
            model.head(_head_name(task)).load_state_dict(model.head(AUXILIARY).state_dict())

    def predict(self, model: IncrementalModel, features: Tensor) -> Prediction:
        """The head with the lowest probability of "others" names the task, its best class is the answer.

        One minus that probability says how known the image is: low for diseases that were never learnt.
        """
        heads = _task_heads(model)
        others = torch.stack([head(features).softmax(dim=1)[:, head.rows.index(OTHERS)] for head in heads], dim=1)
        lowest, chosen = others.min(dim=1)
        answers = [_best_class(head, features) for head in heads]
        probability = torch.stack([best for best, _ in answers], dim=1).gather(1, chosen.unsqueeze(1)).squeeze(1)
        labels = torch.stack([label for _, label in answers], dim=1).gather(1, chosen.unsqueeze(1)).squeeze(1)
        return Prediction(labels, probability, known=1 - lowest)


def _best_class(head: LinearHead, features: Tensor) -> tuple[Tensor, Tensor]:
    """Probability and global label of the best named class of one head, each Tensor[B]."""
    named = [index for index, row in enumerate(head.rows) if row != OTHERS]
    best, position = head(features).softmax(dim=1)[:, named].max(dim=1)
    classes = torch.tensor([head.rows[index] for index in named], device=position.device)
    return best, classes[position]


def _head_name(task: int) -> str:
    return f"task{task}"


def _task_heads(model: IncrementalModel) -> list[LinearHead]:
    return [model.head(name) for name in model.heads if name != AUXILIARY]


def _adapters(model: IncrementalModel) -> AdapterSet:
    adapters = model.extractor.adapters
    assert adapters is not None
    return adapters


def _set_prefix(task: int) -> str:
    return f"set{task}."


def _archived(archive: Archive, task: int) -> dict[str, Tensor]:
    prefix = _set_prefix(task)
    return {name.removeprefix(prefix): tensor for name, tensor in archive.items() if name.startswith(prefix)}
