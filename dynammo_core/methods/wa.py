"""WA (Zhao et al., arXiv 1911.07053): distillation, then new weight vectors are brought to the length of old ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from dynammo_core.methods.base import Method
from dynammo_core.methods.decisions import CLASSES
from dynammo_core.methods.distillation import keep_teacher, soft_cross_entropy, taught_logits, teacher
from dynammo_core.methods.heads import grow_class_means, grow_classifier, remember, train
from dynammo_core.methods.rehearsal import new_and_exemplars
from dynammo_core.methods.settings.heads import WASettings
from dynammo_core.models.incremental_model import IncrementalModel
from dynammo_core.plan import Archive, LossContext, Stage


class WA(Method[WASettings]):
    """Cross-entropy and distillation, weighted by the share of old classes; weights are aligned after each task.

    Alignment happens once, at the server, after the last round. Biases stay as they are, as in the paper. Deviation:
    weights may be negative, where the paper clips them at zero after each step.
    """

    name = "wa"
    paper_url = "https://arxiv.org/abs/1911.07053"

    def grow(self, model: IncrementalModel, task: int) -> None:
        grow_classifier(model, self.stream, task)
        grow_class_means(model, self.stream, task, self.params)

    def begin_task(self, model: IncrementalModel, archive: Archive, task: int) -> None:
        keep_teacher(model, archive, task)
        self.grow(model, task)

    def stages(self, task: int) -> Sequence[Stage]:
        training = train(self.params, new_and_exemplars, self.loss, beside=teacher(task), finish=self.align)
        return (*training, *remember(self.params, self.deployed))

    def loss(self, model: IncrementalModel, inputs: Tensor, labels: Tensor, context: LossContext) -> Tensor:
        """Equation 4: (1 - s) cross-entropy + s distillation, where s is the old classes' share of all."""
        head = model.head(CLASSES)
        logits = head(model.extractor(inputs))
        classification = F.cross_entropy(logits, head.targets(labels))
        if context.teacher is None:
            return classification
        taught = taught_logits(context.teacher, inputs)
        old = taught.shape[1]
        share = old / len(head.rows)
        distillation = soft_cross_entropy(logits[:, :old], taught, self.params.temperature)
        return (1 - share) * classification + share * distillation

    @torch.no_grad()
    def align(self, model: IncrementalModel, archive: Archive, task: int) -> None:
        """Equations 6 to 8: new weight vectors times the ratio of the mean norms of old and new ones."""
        if task:
            weight = model.head(CLASSES).weight
            old = len(self.stream.seen(task - 1))
            norms = weight.norm(dim=1)
            weight[old:] *= norms[:old].mean() / norms[old:].mean()
