"""What methods share whose classifier is solved in closed form: sums over samples, one solve at the server."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dynammo_core.data.task_stream import TaskStream
from dynammo_core.methods.base import Method
from dynammo_core.methods.decisions import CLASSES, DecisionRule, Prediction
from dynammo_core.methods.settings.closed_form import FeatureSettings, Prior
from dynammo_core.models.backbones import Backbone
from dynammo_core.models.incremental_model import (
    AdaptedBackbone,
    BlockwiseBackbone,
    IncrementalModel,
    MultiScaleBackbone,
)
from dynammo_core.models.ridge.head import RidgeHead
from dynammo_core.plan import Archive
from dynammo_core.support.errors import ConfigError, nearest_match

HEAD = f"heads.{CLASSES}"
ANSWERS = (f"{HEAD}.weight", f"{HEAD}.bias")
"""Patterns of the tensors that answer; they are solved from the sums."""

DEVIATIONS = "deviations_of_features"
"""Name, in the archive, of the features' deviations in the sums that the classifier was solved from, Tensor[D]."""

SHARPNESS = 8
"""Inverse temperature. Of 4, 8 and 16 the best calibrated over digits and Fashion-MNIST, on validation images, whatever
the number of classes; a power of two leaves every answer as it is, bit for bit."""

STRETCH = 4
"""Power of the odds of the open-set score: it keeps their order, and spreads them over the bins that sites count in."""


def scales(params: FeatureSettings, backbone: Backbone) -> AdaptedBackbone:
    """Make the extractor that the settings name, on a backbone, without adapters."""
    if params.multi_scale == "blocks":
        return BlockwiseBackbone(backbone, params.pooling)
    return MultiScaleBackbone(backbone, params.pooling) if params.multi_scale else AdaptedBackbone(backbone)


def grow_ridge(model: IncrementalModel, stream: TaskStream, task: int) -> None:
    """Give the model a classifier of all classes so far, whose sums start from nothing, with the weights it had."""
    head = RidgeHead(model.feature_dim, stream.seen(task))
    if CLASSES in model.heads:
        earlier = ridge_head(model).sample_weight
        head.sample_weight[: len(earlier)] = earlier
    model.heads[CLASSES] = head


def ridge_head(model: IncrementalModel, name: str = CLASSES) -> RidgeHead:
    """Find the classifier, or another head, and its sums."""
    head = model.head(name)
    assert isinstance(head, RidgeHead)
    return head


class LargestLabel(DecisionRule):
    """Answers with the largest regressed label; its probabilities are the softmax of these labels, sharpened.

    Regressed labels differ by 1 at most, and their plain softmax would be nearly even. How known the image is follows
    from s, the largest label over 1 plus what lies below 0: s^4 / (s^4 + (1 - s)^4). Labels sum to 1, and an image like
    nothing learnt gets some below 0, so that others have to be larger: s is then the largest label's share of the
    positive ones. After noise they sum to anything, and s still serves.
    """

    open_set_score = "s^4 / (s^4 + (1 - s)^4), s the largest regressed label over 1 plus what lies below 0"

    def probabilities(self, model: IncrementalModel, features: Tensor) -> list[Tensor]:
        return [(SHARPNESS * ridge_head(model)(features)).softmax(dim=1)]

    def predict(self, model: IncrementalModel, features: Tensor) -> Prediction:
        labels = ridge_head(model)(features)
        below = labels.clamp_max(0).sum(dim=1)
        share = (labels.max(dim=1).values / (1 - below)).clamp(0, 1)
        known = share**STRETCH / (share**STRETCH + (1 - share) ** STRETCH)
        return replace(super().predict(model, features), known=known)


def grow_answers(model: IncrementalModel, stream: TaskStream, task: int) -> None:
    """Give the model a classifier as `grow_ridge` does, which has the weights of the one before, and no bias yet."""
    earlier = ridge_head(model).weight if CLASSES in model.heads else None
    grow_ridge(model, stream, task)
    if earlier is not None:
        ridge_head(model).weight[: len(earlier)] = earlier


def solve(method: Method[Any], model: IncrementalModel, archive: Archive, task: int) -> None:
    """Solve the classifier from the sums, noised or not."""
    head, params = ridge_head(model), method.params
    if method.privacy.mechanism == "none":
        head.solve(params.regulariser, shares(params.prior, head, method.stream))
    else:
        head.solve_noised(params.regulariser)


def solve_near_earlier(method: Method[Any], model: IncrementalModel, archive: Archive, task: int) -> None:
    """Solve the classifier from the sums, shrunk towards the weights that it has, those of the one before.

    The weight of a feature that hardly varied may be large without a trace in any answer. If the feature varies more
    now, as channels do that new classes alone excite, that weight would drown all others. So it is taken for as much
    smaller as the feature's deviation has become larger.
    """
    head, params = ridge_head(model), method.params
    now = head.deviations()
    before = archive.get(DEVIATIONS, now)
    archive[DEVIATIONS] = now
    towards = head.weight.double() * torch.where(now > before, before / now, 1.0)
    head.solve(params.regulariser, shares(params.prior, head, method.stream), towards)


def check_prior(prior: Prior, stream: TaskStream) -> None:
    """Refuse shares of classes that leave out a class, or name one that does not take part.

    Raises:
        ConfigError: they do; the message says which.
    """
    if isinstance(prior, str):
        return
    named = [stream.name_of(label) for label in stream.seen(len(stream))]
    for one, others, what in (
        *((name, prior, "does not name the class") for name in named if name not in prior),
        *((name, named, "names an unknown class") for name in prior if name not in named),
    ):
        accepted = f"a share for each of {', '.join(map(repr, named))}"
        raise ConfigError(f"method.prior {what} {one!r}{nearest_match(one, others)}", accepted=accepted)


def shares(prior: Prior, head: RidgeHead, stream: TaskStream) -> Tensor:
    """Return how frequent each row's class is taken to be, Tensor[R]: 1 in all, and 0 for one without samples."""
    if isinstance(prior, str):
        wanted = torch.ones_like(head.counts) if prior == "equal" else head.counts
    else:
        wanted = head.counts.new_tensor([prior[stream.name_of(row)] for row in head.rows])
    wanted = torch.where(head.counts > 0, wanted, 0.0)
    return wanted / wanted.sum().clamp_min(torch.finfo(wanted.dtype).tiny)
