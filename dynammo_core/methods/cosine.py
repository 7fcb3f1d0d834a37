"""What LUCIR and PODNet share: a cosine classifier whose new rows are imprinted before they are trained."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from dynammo_core.data.samples import Samples
from dynammo_core.methods.base import CLASSES, Archive, Batch, Rehearsal
from dynammo_core.methods.distillation import DistillingMethod
from dynammo_core.methods.single_head import mean_unit_features
from dynammo_core.models.heads import CosineHead
from dynammo_core.models.incremental_model import IncrementalModel
from dynammo_core.plan import Action, Stage

IMPRINT = "imprint"
WEIGHT = f"heads.{CLASSES}.weight"
SPREAD = 0.5
"""Length of the random vectors that set the proxies of a class apart, where the mean they start from has length 1."""


class CosineMethod(DistillingMethod):
    """Distils with a cosine head; each task but the first begins by imprinting.

    Imprinting (Qi et al., arXiv 1712.07136; Hou et al., CVPR 2019): a new class's weight vector starts at the mean of
    its unit features, over all sites, at the mean length of the old classes' vectors.
    """

    def stages(self, task: int) -> Sequence[Stage]:
        down = ("extractor.*", f"heads.{CLASSES}.*")
        imprint = Stage(IMPRINT, Action.SUMMARISE, down, (WEIGHT,), inputs="features")
        return (*((imprint,) if task else ()), *super().stages(task))

    def training_set(self, stage: Stage, rehearsal: Rehearsal) -> Samples:
        if stage.name != IMPRINT:
            return super().training_set(stage, rehearsal)
        # A class that reaches this site late has a vector, which the other sites have trained.
        own = self.arrives_with(rehearsal.task, rehearsal.new.labels)
        return rehearsal.new.subset(own.nonzero().squeeze(1))

    def summarise(self, model: IncrementalModel, batches: Iterable[Batch], stage: Stage) -> dict[str, Tensor]:
        if stage.name != IMPRINT:
            return super().summarise(model, batches, stage)
        head = cosine_head(model)
        means = mean_unit_features(batches, head).repeat_interleave(head.proxies, dim=0)
        return {WEIGHT: torch.where(means.isnan(), head.weight, means)}

    @torch.no_grad()
    def finish_stage(self, model: IncrementalModel, archive: Archive, task: int, stage: Stage) -> None:
        if stage.name != IMPRINT:
            return
        head = cosine_head(model)
        old = len(self.stream.seen(task - 1)) * head.proxies
        new = F.normalize(head.weight[old:], dim=1)
        if head.proxies > 1:
            new += SPREAD * F.normalize(torch.randn_like(new), dim=1)
        head.weight[old:] = F.normalize(new, dim=1) * head.weight[:old].norm(dim=1).mean()


def cosine_head(model: IncrementalModel) -> CosineHead:
    """The classifier."""
    head = model.head(CLASSES)
    assert isinstance(head, CosineHead)
    return head
