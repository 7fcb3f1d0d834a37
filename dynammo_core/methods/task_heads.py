"""What DynaMMo and ACL share: one head a task, with a row for all other classes, and the heads' balanced stage."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from dynammo_core.data.task_stream import TaskStream
from dynammo_core.methods.adapters import AUXILIARY
from dynammo_core.methods.decisions import DecisionRule, Prediction
from dynammo_core.methods.rehearsal import balanced
from dynammo_core.methods.settings.adapters import TaskHeadsSettings
from dynammo_core.models.heads import OTHERS, Head, LinearHead
from dynammo_core.models.incremental_model import IncrementalModel
from dynammo_core.plan import PERSONAL, Archive, Evaluate, Fit, LossContext

TASK_HEADS = "heads.task*"
"""Pattern of the tensors of all task heads."""

Views = Callable[[Tensor, int], list[Tensor]]
"""Splits features Tensor[B, D] into what each head, of so many, sees."""


def everything(features: Tensor, heads: int) -> list[Tensor]:
    """Show each head all features."""
    return [features] * heads


def own_pass(features: Tensor, heads: int) -> list[Tensor]:
    """Show the head of task t the features of pass t, of as many passes through the network as heads."""
    return list(features.chunk(heads, dim=1))


def balance(params: TaskHeadsSettings, adapters: str, views: Views = everything) -> Fit:
    """Make the stage that trains all task heads on the balanced set, while adapters and backbone stand still.

    The loss is the sum of the heads' cross-entropies; for each head the classes of other tasks are "others". Source:
    stage 2 of DynaMMo (arXiv 2404.14099, section 3).
    """

    def loss(model: IncrementalModel, inputs: Tensor, labels: Tensor, context: LossContext) -> Tensor:
        features, heads = model.extractor.embed(inputs, start=context.inputs), task_heads(model)
        shown = zip(heads, views(features, len(heads)), strict=True)
        losses = [nn.functional.cross_entropy(head(view), head.targets(labels)) for head, view in shown]
        return torch.stack(losses).sum()

    return Fit(
        "balance",
        down=(adapters, TASK_HEADS),
        up=(TASK_HEADS,),
        inputs="features",
        optimisation=params.balance,
        learns_from=balanced,
        loss=loss,
    )


def evaluation(params: TaskHeadsSettings, deployed: tuple[str, ...], heads: Fit) -> Evaluate:
    """Make the stage that ends a task; with `method.personal` a site trains the heads for one more round, for itself.

    Source: fine-tuning what was averaged, the simplest personalisation and a strong one (Cheng, Chadha and Duchi, arXiv
    2108.07313).

    Args:
        params: of the method.
        deployed: patterns of the tensors that prediction needs.
        heads: the balanced stage.
    """
    if not params.personal:
        return Evaluate(down=deployed)
    return Evaluate(down=deployed, tables=(PERSONAL,), own_round=heads)


def grow_task_head(model: IncrementalModel, stream: TaskStream, task: int, width: int) -> None:
    """Give the model the head of a task, on features of `width`: its classes and "others"."""
    model.heads[_name(task)] = LinearHead(width, (*stream.classes(task), OTHERS))


def task_heads(model: IncrementalModel) -> list[Head]:
    """List the heads of all tasks so far, in their order."""
    return [model.head(name) for name in model.heads if name != AUXILIARY]


def start_head_from_auxiliary(model: IncrementalModel, archive: Archive, task: int) -> None:
    """Give a task's head what the auxiliary head has learnt.

    Deviation from DynaMMo and ACL: the first task's head starts anew, since its auxiliary head never saw "others". The
    release of ACL does the reverse: its first head is the auxiliary one, without a balanced stage, and all later heads
    start anew.
    """
    if task:
        model.head(_name(task)).load_state_dict(model.head(AUXILIARY).state_dict())


class SurestTask(DecisionRule):
    """Lets the head with the lowest probability of "others" name the task, and answers with its best class.

    Args:
        views: what each head sees of the features.
    """

    open_set_score = '1 minus the lowest probability of "others"'

    def __init__(self, views: Views = everything) -> None:
        self._views = views

    def heads(self, model: IncrementalModel) -> list[Head]:
        return task_heads(model)

    def probabilities(self, model: IncrementalModel, features: Tensor) -> list[Tensor]:
        heads = task_heads(model)
        shown = zip(heads, self._views(features, len(heads)), strict=True)
        return [head(view).softmax(dim=1) for head, view in shown]

    def predict(self, model: IncrementalModel, features: Tensor) -> Prediction:
        """One minus the lowest probability of "others" is low for diseases that were never learnt."""
        rows = [(task, label) for task, head in enumerate(task_heads(model)) for label in head.rows]
        others = [column for column, (_, label) in enumerate(rows) if label == OTHERS]
        tasks, labels = torch.tensor(rows, device=features.device).unbind(dim=1)
        every = torch.cat(self.probabilities(model, features), dim=1)
        lowest, chosen = every[:, others].min(dim=1, keepdim=True)
        named = every.masked_fill((tasks != chosen) | (labels == OTHERS), -1)
        probability, column = named.max(dim=1)
        return Prediction(labels[column], probability, known=1 - lowest.squeeze(1))


def _name(task: int) -> str:
    return f"task{task}"
