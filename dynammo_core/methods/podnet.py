"""PODNet (Douillard et al., arXiv 2004.13513): pooled outputs distillation and a local similarity classifier."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from dynammo_core.methods.base import Method
from dynammo_core.methods.distillation import cosine_distance, keep_teacher, teacher
from dynammo_core.methods.heads import HEAD, NETWORK, grow_class_means, grow_classifier, remember, train
from dynammo_core.methods.imprinting import cosine_head, imprint
from dynammo_core.methods.rehearsal import balanced, new_and_exemplars
from dynammo_core.methods.settings.heads import PODNetSettings
from dynammo_core.models.heads import CosineHead
from dynammo_core.models.incremental_model import AdaptedBackbone, IncrementalModel
from dynammo_core.plan import Archive, Fit, LossContext, Stage


class PODNet(Method[PODNetSettings]):
    """Holds every stage's maps near the old ones, pooled along rows and columns, and balances the classifier.

    The proxies of old classes stand still, except in the balanced stage, as in the authors' release.

    Deviations: a class's proxies start around its imprinted mean, because the paper's k-means would need the features
    of all sites in one place; the scale starts at 10, not at 1, for shorter schedules, and the margin is 0.06, not 0.6,
    so that it starts at 0.6 logits as there; features are compared by cosine, as in the authors' release, which is half
    the squared distance of unit vectors.
    """

    name = "podnet"
    paper_url = "https://arxiv.org/abs/2004.13513"

    def grow(self, model: IncrementalModel, task: int) -> None:
        first = partial(CosineHead, proxies=self.params.proxies, scale=self.params.scale)
        grow_classifier(model, self.stream, task, first)
        grow_class_means(model, self.stream, task, self.params)

    def begin_task(self, model: IncrementalModel, archive: Archive, task: int) -> None:
        keep_teacher(model, archive, task)
        self.grow(model, task)

    def stages(self, task: int) -> Sequence[Stage]:
        training = train(self.params, new_and_exemplars, self.loss, beside=teacher(task))
        balance = Fit(
            "balance",
            down=NETWORK,
            up=HEAD,
            inputs="features",
            optimisation=self.params.balance,
            learns_from=balanced,
            loss=self.balanced_loss,
        )
        fits = (*training, balance) if task else training
        return (*imprint(self.stream, task), *fits, *remember(self.params, self.deployed))

    def loss(self, model: IncrementalModel, inputs: Tensor, labels: Tensor, context: LossContext) -> Tensor:
        """Equation 11: local similarity classification + distillation of pooled maps and of features.

        Both terms of distillation grow with sqrt(classes seen / new classes).
        """
        head = cosine_head(model)
        maps, features = _stage_maps(model, inputs)
        old = len(self.stream.seen(context.task - 1))
        classification = self._classification(head, features, labels, fixed=old)
        if context.teacher is None:
            return classification
        with torch.no_grad():
            taught, taught_features = _stage_maps(context.teacher, inputs)
        growth = math.sqrt(len(head.rows) / len(self.stream.classes(context.task)))
        spatial = torch.stack([pooled_distance(new, old) for new, old in zip(maps, taught, strict=True)]).mean()
        flat = cosine_distance(features, taught_features)
        return classification + growth * (self.params.spatial * spatial + self.params.flat * flat)

    def balanced_loss(self, model: IncrementalModel, inputs: Tensor, labels: Tensor, context: LossContext) -> Tensor:
        """The classification alone, in which the vectors of all classes learn."""
        features = model.extractor.embed(inputs, start=context.inputs)
        return self._classification(cosine_head(model), features, labels)

    def _classification(self, head: CosineHead, features: Tensor, labels: Tensor, fixed: int = 0) -> Tensor:
        """Equation 10: max(0, -log(exp(eta (y_own - delta)) / sum over other classes of exp(eta y_i)))."""
        logits = head.scale * head.similarities(features, fixed)
        true = F.one_hot(head.targets(labels), len(head.rows)).bool()
        others = logits.masked_fill(true, -math.inf).logsumexp(dim=1)
        excess: Tensor = (others - logits[true] + head.scale * self.params.margin).clamp_min(0)
        return excess.mean()


def pooled_distance(maps: Tensor, taught: Tensor) -> Tensor:
    """Compute POD-spatial (equations 4 to 6), the distance of squared maps pooled over rows and over columns.

    Each image's pooled values are one vector of unit length; the result is the mean Euclidean distance.

    Args:
        maps: Tensor[B, C, H, W] of the pupil.
        taught: Tensor[B, C, H, W] of the teacher.
    """
    distances: Tensor = (_pooled(maps) - _pooled(taught)).norm(dim=1)
    return distances.mean()


def _pooled(maps: Tensor) -> Tensor:
    energy = maps.square()
    return F.normalize(torch.cat([energy.sum(dim=3).flatten(1), energy.sum(dim=2).flatten(1)], dim=1), dim=1)


def _stage_maps(model: IncrementalModel, images: Tensor) -> tuple[list[Tensor], Tensor]:
    assert isinstance(model.extractor, AdaptedBackbone)
    return model.extractor.backbone.stage_outputs(images)
