"""WA (Zhao et al., arXiv 1911.07053): distillation, then new weight vectors are brought to the length of old ones."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from dynammo_core.methods.base import CLASSES, Archive, LossContext
from dynammo_core.methods.distillation import DistillingMethod, soft_cross_entropy, taught_logits
from dynammo_core.methods.single_head import RehearsalSettings
from dynammo_core.models.incremental_model import IncrementalModel
from dynammo_core.plan import Stage


class WASettings(RehearsalSettings):
    """How soft the teacher's answers are."""

    temperature: float = Field(default=2.0, gt=0, description="of distillation")


class WA(DistillingMethod):
    """Cross-entropy and distillation, weighted by the share of old classes; weights are aligned after each task.

    Alignment happens once, at the server, after the last round. Biases stay as they are, as in the paper. Deviation:
    weights may be negative, where the paper clips them at zero after each step.
    """

    name = "wa"
    paper_url = "https://arxiv.org/abs/1911.07053"
    Params = WASettings
    params: WASettings

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
    def finish_stage(self, model: IncrementalModel, archive: Archive, task: int, stage: Stage) -> None:
        """Equations 6 to 8: new weight vectors times the ratio of the mean norms of old and new ones."""
        if task and stage.name == "train":
            weight = model.head(CLASSES).weight
            old = len(self.stream.seen(task - 1))
            norms = weight.norm(dim=1)
            weight[old:] *= norms[:old].mean() / norms[old:].mean()
