"""What DynaMMo and ACL share: adapters on a frozen backbone, and one head a task with a row for all other classes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dynammo_core.configuration.settings import MethodSettings, Optimisation
from dynammo_core.data.samples import Samples
from dynammo_core.methods.adapter_tuning import AUXILIARY, AdapterMethod, AdapterSettings
from dynammo_core.methods.base import LossContext, Prediction, Rehearsal
from dynammo_core.models.heads import OTHERS, Head, LinearHead
from dynammo_core.models.incremental_model import IncrementalModel
from dynammo_core.plan import Stage

TASK_HEADS = "heads.task*"


class TaskHeadsSettings(AdapterSettings):
    """The two training stages: adapter tuning and the balanced fine-tuning of the heads."""

    balance: Optimisation = Optimisation(epochs=50, optimizer="adam", learning_rate=1e-3, weight_decay=0.0)


class TaskHeadsMethod(AdapterMethod):
    """Tunes the adapters of a task with an auxiliary head, then all task heads on the balanced set.

    Source: DynaMMo (arXiv 2404.14099, section 3) and ACL (arXiv 2304.09042, section 2). Deviation: the first task's
    head starts anew, since the auxiliary head it would copy has never seen "others".
    """

    params: TaskHeadsSettings
    open_set_words = '1 minus the lowest probability of "others"'

    @classmethod
    def obstacle_to_privacy(cls, params: MethodSettings, mechanism: str) -> str:
        assert isinstance(params, TaskHeadsSettings)
        if params.norm == "group" or not cls.tunes_adapters(params):
            return ""
        return (
            "batch norm mixes the images of a batch, and sends statistics of them that no gradient clipping bounds; "
            "set method.norm: group"
        )

    @classmethod
    def tunes_adapters(cls, params: TaskHeadsSettings) -> bool:
        """Whether there are adapters at all."""
        return True

    def grow_heads(self, model: IncrementalModel, task: int, width: int, *, tunes: bool = True) -> None:
        """The heads of a task on features of `width`: its own one, and a new auxiliary one if it `tunes` adapters."""
        if tunes:
            self.grow_auxiliary(model, task, width)
        model.heads[head_name(task)] = LinearHead(width, (*self.stream.classes(task), OTHERS))

    def view(self, features: Tensor, task: int, tasks: int) -> Tensor:
        """What the head of `task` sees of the features Tensor[B, D], of `tasks` tasks in all: everything."""
        return features

    def training_set(self, stage: Stage, rehearsal: Rehearsal) -> Samples:
        return self.adapting_set(rehearsal) if stage.name == "adapt" else rehearsal.balanced()

    def loss(self, model: IncrementalModel, inputs: Tensor, labels: Tensor, context: LossContext) -> Tensor:
        """Stage 1: cross-entropy of the auxiliary head; stage 2: the sum of all task heads' cross-entropies."""
        if context.stage.name == "adapt":
            return super().loss(model, inputs, labels, context)
        features = model.extractor.embed(inputs, start=context.stage.inputs)
        heads = task_heads(model)
        losses = [
            nn.functional.cross_entropy(head(self.view(features, task, len(heads))), head.targets(labels))
            for task, head in enumerate(heads)
        ]
        return torch.stack(losses).sum()

    def answering_heads(self, model: IncrementalModel) -> list[Head]:
        return task_heads(model)

    def probabilities(self, model: IncrementalModel, features: Tensor) -> list[Tensor]:
        heads = task_heads(model)
        return [head(self.view(features, task, len(heads))).softmax(dim=1) for task, head in enumerate(heads)]

    def predict(self, model: IncrementalModel, features: Tensor) -> Prediction:
        """The head with the lowest probability of "others" names the task, its best class is the answer.

        One minus that probability says how known the image is: low for diseases that were never learnt.
        """
        rows = [(task, label) for task, head in enumerate(task_heads(model)) for label in head.rows]
        others = [column for column, (_, label) in enumerate(rows) if label == OTHERS]
        tasks, labels = torch.tensor(rows, device=features.device).unbind(dim=1)
        every = torch.cat(self.probabilities(model, features), dim=1)
        lowest, chosen = every[:, others].min(dim=1, keepdim=True)
        named = every.masked_fill((tasks != chosen) | (labels == OTHERS), -1)
        probability, column = named.max(dim=1)
        return Prediction(labels[column], probability, known=1 - lowest.squeeze(1))


def head_name(task: int) -> str:
    """Name of the head of a task."""
    return f"task{task}"


def task_heads(model: IncrementalModel) -> list[Head]:
    """The heads of all tasks so far, in their order."""
    return [model.head(name) for name in model.heads if name != AUXILIARY]


def start_head_from_auxiliary(model: IncrementalModel, task: int) -> None:
    """Give a task's head what the auxiliary head has learnt, but for the first task's, which has no "others" yet."""
    if task:
        model.head(head_name(task)).load_state_dict(model.head(AUXILIARY).state_dict())
