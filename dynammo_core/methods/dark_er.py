"""DER++ (Buzzega et al., arXiv 2004.07211): exemplars are replayed with their labels and with a teacher's logits."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from dynammo_core.methods.base import Method
from dynammo_core.methods.decisions import CLASSES
from dynammo_core.methods.distillation import keep_teacher, taught_logits, teacher
from dynammo_core.methods.heads import grow_class_means, grow_classifier, remember, train
from dynammo_core.methods.rehearsal import is_any_of, new_and_exemplars
from dynammo_core.methods.settings.heads import DarkERSettings
from dynammo_core.models.incremental_model import IncrementalModel
from dynammo_core.plan import Archive, LossContext, Stage


class DarkER(Method[DarkERSettings]):
    """Dark experience replay with labels.

    Deviations: the logits are those of the model that the previous task ended with, not those stored when an exemplar
    was met; exemplars are chosen at the end of a task by `memory.selection`, not by a reservoir; and a batch mixes new
    images and exemplars as they come, where the paper draws each from its own stream.
    """

    name = "dark_er"
    paper_url = "https://arxiv.org/abs/2004.07211"

    def grow(self, model: IncrementalModel, task: int) -> None:
        grow_classifier(model, self.stream, task)
        grow_class_means(model, self.stream, task, self.params)

    def begin_task(self, model: IncrementalModel, archive: Archive, task: int) -> None:
        keep_teacher(model, archive, task)
        self.grow(model, task)

    def stages(self, task: int) -> Sequence[Stage]:
        training = train(self.params, new_and_exemplars, self.loss, beside=teacher(task))
        return (*training, *remember(self.params, self.deployed))

    def loss(self, model: IncrementalModel, inputs: Tensor, labels: Tensor, context: LossContext) -> Tensor:
        """Equation 6: cross-entropy of new images + alpha |z - z_old|^2 + beta cross-entropy of exemplars.

        The distance is a mean over the classes that the teacher knows.
        """
        head = model.head(CLASSES)
        logits = head(model.extractor(inputs))
        losses = F.cross_entropy(logits, head.targets(labels), reduction="none")
        if context.teacher is None:
            return losses.mean()
        replayed = ~is_any_of(self.stream.classes(context.task), labels)
        taught = taught_logits(context.teacher, inputs)
        distances = (logits[:, : taught.shape[1]] - taught).square().mean(dim=1)
        replay = self.params.alpha * distances + self.params.beta * losses
        return _mean(losses[~replayed]) + _mean(replay[replayed])


def _mean(values: Tensor) -> Tensor:
    """Compute the mean, which is zero without values: a batch may hold new images alone, or exemplars alone."""
    return values.sum() / max(1, len(values))
