"""iCaRL (Rebuffi et al., arXiv 1611.07725): distillation, herding, and the nearest mean of exemplars."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from dynammo_core.methods.base import Method
from dynammo_core.methods.decisions import CLASSES
from dynammo_core.methods.distillation import keep_teacher, taught_logits, teacher
from dynammo_core.methods.heads import grow_class_means, grow_classifier, remember, train
from dynammo_core.methods.rehearsal import new_and_exemplars
from dynammo_core.methods.settings.heads import ICaRLSettings
from dynammo_core.models.incremental_model import IncrementalModel
from dynammo_core.plan import Archive, LossContext, Stage


class ICaRL(Method[ICaRLSettings]):
    """One sigmoid per class: new classes learn from labels, old ones from the previous model's sigmoids.

    Deviation: the loss is the sum over classes and the mean over the batch.
    """

    name = "icarl"
    paper_url = "https://arxiv.org/abs/1611.07725"

    def grow(self, model: IncrementalModel, task: int) -> None:
        grow_classifier(model, self.stream, task)
        grow_class_means(model, self.stream, task, self.params)

    def begin_task(self, model: IncrementalModel, archive: Archive, task: int) -> None:
        keep_teacher(model, archive, task)
        self.grow(model, task)

    def stages(self, task: int) -> Sequence[Stage]:
        training = train(self.params, new_and_exemplars, distilled_sigmoids, beside=teacher(task))
        return (*training, *remember(self.params, self.deployed))


def distilled_sigmoids(model: IncrementalModel, inputs: Tensor, labels: Tensor, context: LossContext) -> Tensor:
    """Algorithm 3: binary cross-entropy to the one-hot label for new classes, to the old outputs for old ones."""
    head = model.head(CLASSES)
    logits = head(model.extractor(inputs))
    targets = F.one_hot(head.targets(labels), len(head.rows)).to(logits.dtype)
    if context.teacher is not None:
        taught = taught_logits(context.teacher, inputs).sigmoid()
        targets = torch.cat([taught, targets[:, taught.shape[1] :]], dim=1)
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="sum") / len(labels)
