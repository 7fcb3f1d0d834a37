"""PODNet (Douillard et al., arXiv 2004.13513): pooled outputs distillation and a local similarity classifier."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from dynammo_core.configuration.settings import Optimisation
from dynammo_core.data.samples import Samples
from dynammo_core.methods.base import CLASSES, LossContext, Rehearsal
from dynammo_core.methods.cosine import CosineMethod, cosine_head
from dynammo_core.methods.distillation import cosine_distance
from dynammo_core.methods.single_head import RehearsalSettings
from dynammo_core.models.heads import CosineHead
from dynammo_core.models.incremental_model import AdaptedBackbone, IncrementalModel
from dynammo_core.plan import Action, Stage


class PODNetSettings(RehearsalSettings):
    """The paper's constants for CIFAR100, but for the scale."""

    proxies: int = Field(default=10, ge=1, description="K proxies a class")
    scale: float = Field(default=10.0, gt=0, description="start value of the learnable scale eta")
    margin: float = Field(default=0.6, ge=0, description="delta of the classification loss")
    spatial: float = Field(default=3.0, ge=0, description="lambda_c of the pooled maps' distance")
    flat: float = Field(default=1.0, ge=0, description="lambda_f of the features' distance")
    balance: Optimisation = Optimisation(epochs=20, learning_rate=0.01)


class PODNet(CosineMethod):
    """Holds every stage's maps near the old ones, pooled along rows and columns, and balances the classifier.

    The proxies of old classes stand still but in the balanced stage, as in the authors' release.

    Deviations: a class's proxies start around its imprinted mean, because the paper's k-means would need the features
    of all sites in one place; the scale starts at 10, not at 1, for shorter schedules; features are compared by cosine,
    as in the authors' release, which is half the squared distance of unit vectors.
    """

    name = "podnet"
    paper_url = "https://arxiv.org/abs/2004.13513"
    Params = PODNetSettings
    params: PODNetSettings

    def stages(self, task: int) -> Sequence[Stage]:
        head = f"heads.{CLASSES}.*"
        balance = Stage("balance", Action.FIT, ("extractor.*", head), (head,), self.params.balance, inputs="features")
        return (*super().stages(task), *((balance,) if task else ()))

    def first_head(self, feature_dim: int, classes: tuple[int, ...]) -> CosineHead:
        return CosineHead(feature_dim, classes, proxies=self.params.proxies, scale=self.params.scale)

    def training_set(self, stage: Stage, rehearsal: Rehearsal) -> Samples:
        return rehearsal.balanced() if stage.name == "balance" else super().training_set(stage, rehearsal)

    def loss(self, model: IncrementalModel, inputs: Tensor, labels: Tensor, context: LossContext) -> Tensor:
        """Equation 11: local similarity classification + distillation of pooled maps and of features.

        Both terms of distillation grow with sqrt(classes seen / new classes). In `balance` the first stands alone.
        """
        head = cosine_head(model)
        if context.stage.name == "balance":
            return self._classification(head, model.extractor.embed(inputs, start=context.stage.inputs), labels)
        maps = _stage_maps(model, inputs)
        features = maps[-1].mean(dim=(2, 3))
        old = len(self.stream.seen(context.task - 1)) if context.task else 0
        classification = self._classification(head, features, labels, fixed=old)
        if context.teacher is None:
            return classification
        with torch.no_grad():
            taught = _stage_maps(context.teacher, inputs)
        growth = math.sqrt(len(head.rows) / len(self.stream.classes(context.task)))
        spatial = torch.stack([pooled_distance(new, old) for new, old in zip(maps, taught, strict=True)]).mean()
        flat = cosine_distance(features, taught[-1].mean(dim=(2, 3)))
        return classification + growth * (self.params.spatial * spatial + self.params.flat * flat)

    def _classification(self, head: CosineHead, features: Tensor, labels: Tensor, fixed: int = 0) -> Tensor:
        """Equation 10: max(0, -log(exp(eta (y_own - delta)) / sum over other classes of exp(eta y_i)))."""
        logits = head.scale * head.similarities(features, fixed)
        own = F.one_hot(head.targets(labels), len(head.rows)).bool()
        others = logits.masked_fill(own, -math.inf).logsumexp(dim=1)
        excess: Tensor = (others - logits[own] + head.scale * self.params.margin).clamp_min(0)
        return excess.mean()


def pooled_distance(maps: Tensor, taught: Tensor) -> Tensor:
    """POD-spatial (equations 4 to 6): distance of squared maps Tensor[B, C, H, W] pooled over rows and over columns.

    Each image's pooled values are one vector of unit length; the result is the mean Euclidean distance.
    """
    distances: Tensor = (_pooled(maps) - _pooled(taught)).norm(dim=1)
    return distances.mean()


def _pooled(maps: Tensor) -> Tensor:
    energy = maps.square()
    return F.normalize(torch.cat([energy.sum(dim=3).flatten(1), energy.sum(dim=2).flatten(1)], dim=1), dim=1)


def _stage_maps(model: IncrementalModel, images: Tensor) -> list[Tensor]:
    assert isinstance(model.extractor, AdaptedBackbone)
    return model.extractor.backbone.stage_outputs(images)
