"""iCaRL (Rebuffi et al., arXiv 1611.07725): distillation, herding, and the nearest mean of exemplars."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from dynammo_core.methods.base import CLASSES, LossContext
from dynammo_core.methods.distillation import DistillingMethod, taught_logits
from dynammo_core.methods.single_head import RehearsalSettings
from dynammo_core.models.incremental_model import IncrementalModel


class ICaRLSettings(RehearsalSettings):
    """As for rehearsal, but the paper answers by the nearest mean; `classifier` asks the sigmoid outputs instead."""

    prediction: Literal["classifier", "nearest_mean"] = "nearest_mean"


class ICaRL(DistillingMethod):
    """One sigmoid a class: new classes learn from labels, old ones from the previous model's sigmoids.

    Deviation: the loss is the sum over classes and the mean over the batch.
    """

    name = "icarl"
    paper_url = "https://arxiv.org/abs/1611.07725"
    Params = ICaRLSettings
    params: ICaRLSettings

    def loss(self, model: IncrementalModel, inputs: Tensor, labels: Tensor, context: LossContext) -> Tensor:
        """Algorithm 3: binary cross-entropy to the one-hot label for new classes, to the old outputs for old ones."""
        head = model.head(CLASSES)
        logits = head(model.extractor(inputs))
        targets = F.one_hot(head.targets(labels), len(head.rows)).to(logits.dtype)
        if context.teacher is not None:
            taught = taught_logits(context.teacher, inputs).sigmoid()
            targets = torch.cat([taught, targets[:, taught.shape[1] :]], dim=1)
        return F.binary_cross_entropy_with_logits(logits, targets, reduction="sum") / len(labels)
