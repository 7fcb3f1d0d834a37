"""LUCIR, also UCIR (Hou et al., CVPR 2019): cosine classifier, less-forget constraint, and a margin to new classes."""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from dynammo_core.methods.base import LossContext
from dynammo_core.methods.cosine import CosineMethod, cosine_head
from dynammo_core.methods.distillation import cosine_distance
from dynammo_core.methods.single_head import RehearsalSettings
from dynammo_core.models.heads import CosineHead
from dynammo_core.models.incremental_model import IncrementalModel


class LUCIRSettings(RehearsalSettings):
    """The paper's constants, but for the scale."""

    scale: float = Field(default=10.0, gt=0, description="start value of the learnable scale of the cosines")
    less_forget: float = Field(default=5.0, ge=0, description="lambda_base of the less-forget constraint")
    margin: float = Field(default=0.5, ge=0, description="m of the margin ranking loss")
    hard_negatives: int = Field(default=2, ge=1, description="K new classes that an exemplar is kept away from")


class LUCIR(CosineMethod):
    """Rebalances old and new classes by geometry; the vectors of old classes stand still (section 3.3).

    Deviations: the backbone keeps its last ReLU; the scale starts at 10, not at 1, for shorter schedules; the
    less-forget weight grows with the square root of old classes over new ones, as in the authors' release for two
    tasks; the margin ranking is a mean over its K terms, as there, not a sum.
    """

    name = "lucir"
    paper_url = "https://openaccess.thecvf.com/content_CVPR_2019/html/Hou_Learning_a_Unified_Classifier_Incrementally_via_Rebalancing_CVPR_2019_paper.html"
    Params = LUCIRSettings
    params: LUCIRSettings

    def first_head(self, feature_dim: int, classes: tuple[int, ...]) -> CosineHead:
        return CosineHead(feature_dim, classes, scale=self.params.scale)

    def loss(self, model: IncrementalModel, inputs: Tensor, labels: Tensor, context: LossContext) -> Tensor:
        """Equation 9: cross-entropy + lambda less-forget (equation 6) + margin ranking of exemplars (equation 8)."""
        head = cosine_head(model)
        features = model.extractor(inputs)
        old = len(self.stream.seen(context.task - 1)) if context.task else 0
        cosines = head.similarities(features, fixed=old)
        targets = head.targets(labels)
        classification = F.cross_entropy(head.scale * cosines, targets)
        if context.teacher is None:
            return classification
        with torch.no_grad():
            taught = context.teacher.extractor(inputs)
        weight = self.params.less_forget * math.sqrt(old / (len(head.rows) - old))
        return classification + weight * cosine_distance(features, taught) + self._ranking(cosines, targets, old)

    def _ranking(self, cosines: Tensor, targets: Tensor, old: int) -> Tensor:
        """Mean over exemplars and their K hardest new classes of max(m - cos(own class) + cos(new class), 0)."""
        exemplars = targets < old
        if not bool(exemplars.any()):
            return cosines.new_zeros(())
        held = cosines[exemplars]
        own = held.gather(1, targets[exemplars].unsqueeze(1))
        new = held[:, old:]
        hardest = new.topk(min(self.params.hard_negatives, new.shape[1]), dim=1).values
        return (self.params.margin - own + hardest).clamp_min(0).mean()
