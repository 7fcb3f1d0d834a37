"""LUCIR, also UCIR (Hou et al., CVPR 2019): cosine classifier, less-forget constraint, and a margin to new classes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from dynammo_core.methods.base import Method
from dynammo_core.methods.distillation import cosine_distance, keep_teacher, teacher
from dynammo_core.methods.heads import grow_class_means, grow_classifier, remember, train
from dynammo_core.methods.imprinting import cosine_head, imprint
from dynammo_core.methods.rehearsal import new_and_exemplars
from dynammo_core.methods.settings.heads import LUCIRSettings
from dynammo_core.models.heads import CosineHead
from dynammo_core.models.incremental_model import IncrementalModel
from dynammo_core.plan import Archive, LossContext, Stage


class LUCIR(Method[LUCIRSettings]):
    """Rebalances old and new classes by geometry; the vectors of old classes stand still (section 3.3).

    Deviations: the backbone keeps its last ReLU; the scale starts at 10, not at 1, for shorter schedules; the
    less-forget weight grows with the square root of old classes over new ones, as in the authors' release for two
    tasks; the margin ranking is a mean over its K terms, as there, not a sum.
    """

    name = "lucir"
    paper_url = "https://openaccess.thecvf.com/content_CVPR_2019/html/Hou_Learning_a_Unified_Classifier_Incrementally_via_Rebalancing_CVPR_2019_paper.html"

    def grow(self, model: IncrementalModel, task: int) -> None:
        grow_classifier(model, self.stream, task, first=partial(CosineHead, scale=self.params.scale))
        grow_class_means(model, self.stream, task, self.params)

    def begin_task(self, model: IncrementalModel, archive: Archive, task: int) -> None:
        keep_teacher(model, archive, task)
        self.grow(model, task)

    def stages(self, task: int) -> Sequence[Stage]:
        training = train(self.params, new_and_exemplars, self.loss, beside=teacher(task))
        return (*imprint(self.stream, task), *training, *remember(self.params, self.deployed))

    def loss(self, model: IncrementalModel, inputs: Tensor, labels: Tensor, context: LossContext) -> Tensor:
        """Equation 9: cross-entropy + lambda less-forget (equation 6) + margin ranking of exemplars (equation 8)."""
        head, params = cosine_head(model), self.params
        features = model.extractor(inputs)
        old = len(self.stream.seen(context.task - 1))
        cosines = head.similarities(features, fixed=old)
        targets = head.targets(labels)
        classification = F.cross_entropy(head.scale * cosines, targets)
        if context.teacher is None:
            return classification
        with torch.no_grad():
            taught = context.teacher.extractor(inputs)
        weight = params.less_forget * math.sqrt(old / (len(head.rows) - old))
        ranking = margin_ranking(cosines, targets, old, margin=params.margin, hard_negatives=params.hard_negatives)
        return classification + weight * cosine_distance(features, taught) + ranking


def margin_ranking(cosines: Tensor, targets: Tensor, old: int, *, margin: float, hard_negatives: int) -> Tensor:
    """Compute the mean over exemplars and their K hardest new classes of max(m - cos(own class) + cos(new class), 0).

    Args:
        cosines: Tensor[B, R] of the features with each class's vector.
        targets: Tensor[B], rows of the true classes.
        old: number of old classes, which have the first rows.
        margin: m.
        hard_negatives: K.
    """
    exemplars = targets < old
    if not bool(exemplars.any()):
        return cosines.new_zeros(())
    exemplar_cosines = cosines[exemplars]
    true = exemplar_cosines.gather(1, targets[exemplars].unsqueeze(1))
    new = exemplar_cosines[:, old:]
    hardest = new.topk(min(hard_negatives, new.shape[1]), dim=1).values
    return (margin - true + hardest).clamp_min(0).mean()
