"""What methods share that answer with the nearest class mean, by distances that follow from sums over all images."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from dynammo_core.methods.decisions import DecisionRule, Prediction
from dynammo_core.methods.rehearsal import is_any_of
from dynammo_core.models.heads import Head
from dynammo_core.models.incremental_model import IncrementalModel
from dynammo_core.models.mahalanobis import SharedCovarianceHead
from dynammo_core.models.names import matching
from dynammo_core.plan import Archive, Batch

SUMS = ("heads.*.counts", "heads.*.gram", "heads.*.products")

SHARPNESS = 256
"""Inverse temperature. Of 64, 256 and 1024 the best calibrated, with a shared covariance, on half of Fashion-MNIST's
training images, from the other half; a power of two leaves every answer as it is, bit for bit."""

STRETCH = 16
"""Power that spreads the open-set score, whose order it keeps, over the bins that sites count in."""


class NearestMean(DecisionRule):
    """Answers with the class whose mean is nearest, over all heads together; its probabilities are sharpened.

    Unit vectors are near each other, and a plain softmax of their distances would be nearly even. It says how known an
    image is: with q the mean over classes of e^-(how much farther they are than the nearest, in halves of squared
    distances), 1 - q^16, which is 0 where all are as far.
    """

    open_set_score = "1 - q^16, q the mean over classes of e^(l - L), l minus half a squared distance, L the largest"

    def heads(self, model: IncrementalModel) -> list[Head]:
        return [model.head(name) for name in model.heads]

    def probabilities(self, model: IncrementalModel, features: Tensor) -> list[Tensor]:
        heads = self.heads(model)
        together = (SHARPNESS * self._logits(model, features)).softmax(dim=1)
        return list(torch.split(together, [len(head.rows) for head in heads], dim=1))

    def predict(self, model: IncrementalModel, features: Tensor) -> Prediction:
        logits = self._logits(model, features)
        probability, place = (SHARPNESS * logits).softmax(dim=1).max(dim=1)
        rows = torch.tensor([row for head in self.heads(model) for row in head.rows], device=place.device)
        beside = (logits - logits.amax(dim=1, keepdim=True)).exp().mean(dim=1)
        return Prediction(rows[place], probability, known=1 - beside**STRETCH)

    def _logits(self, model: IncrementalModel, features: Tensor) -> Tensor:
        return torch.cat([head(features) for head in self.heads(model)], dim=1)


def sums_by_head(model: IncrementalModel, batches: Iterable[Batch]) -> dict[str, Tensor]:
    """Compute the sums of a site's images for each head, Gram matrices as thin factors where those are shorter."""
    found, state = list(batches), model.state_dict()
    sums = {name: state[name] for name in matching(state, SUMS)}
    for name, head in heads_of(model).items():
        chosen = ((features, labels, is_any_of(head.rows, labels)) for features, labels in found)
        own = [(features[mine], labels[mine]) for features, labels, mine in chosen if mine.any()]
        factor = head.add_thinly(own) if own else torch.empty(0, model.feature_dim, dtype=torch.float64)
        if factor is not None:
            sums[f"heads.{name}.gram"] = factor
    return sums


def heads_of(model: IncrementalModel) -> dict[str, SharedCovarianceHead]:
    """Find the heads by name: one for all classes, or one for each."""
    return {name: head for name, head in model.heads.items() if isinstance(head, SharedCovarianceHead)}


def add_to_totals(model: IncrementalModel, archive: Archive, *, corrects: bool) -> None:
    """Add the totals of all images so far to the sums that the sites brought, and keep them.

    Args:
        model: holds the new sums; or, if it `corrects`, the negative sums of withdrawn records.
        archive: holds the totals, of the classes seen before.
        corrects: whether records leave the totals, which may leave a class without any.
    """
    state = model.state_dict()
    sums = {name: state[name] for name in matching(state, SUMS)}
    for name in sums.keys() & archive.keys():
        sums[name][tuple(slice(size) for size in archive[name].shape)] += archive[name]
    if corrects:
        for head in heads_of(model).values():
            head.clear_absent()
    archive.update({name: tensor.clone() for name, tensor in sums.items()})
