"""A site's own classifier from the common sums and its own: between what all sites share and staying alone.

The sums of ridge regression add up, so a site can let its own images count for more: common + beta * own, with the own
sums scaled to the weight of the common ones. At beta 0 that is the common classifier, at infinity the one that the site
would have alone. Which beta serves a site is decided by its own images, in folds of patients: as sums subtract, each
fold is tested with classifiers that never saw it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dynammo_core.models.ridge.head import RidgeHead
from dynammo_core.scoring.own_choice import folds, gained, gains

BETAS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, math.inf)
"""Weights of the own sums that are tried: 1 lets them count as much as those of all sites together."""


class OwnImages(NamedTuple):
    """A site's training images.

    Attributes:
        features: Tensor[N, D].
        labels: global ones, Tensor[N].
        patients: N, whom the images show.
        summed: whether the common sums contain an image, Tensor[N] bool.
    """

    features: Tensor
    labels: Tensor
    patients: Sequence[str]
    summed: Tensor

    def subset(self, chosen: Tensor) -> OwnImages:
        """Return the images where `chosen`, Tensor[N] bool, is true."""
        kept = chosen.nonzero().flatten()
        patients = [self.patients[place] for place in kept.tolist()]
        return OwnImages(self.features[kept], self.labels[kept], patients, self.summed[kept])


def balancing(counts: Tensor) -> Tensor:
    """Return a weight for each sample of a class, Tensor[R]: the power of 2 nearest to 1 over the class's number."""
    return torch.ldexp(torch.ones_like(counts), -counts.clamp_min(1).log2().round())


def own_sums(images: OwnImages, rows: tuple[int, ...]) -> RidgeHead:
    """Sum a site's images as a federation of that site alone would, each class with about the same weight."""
    head = RidgeHead(images.features.shape[1], rows).to(images.features.device)
    places = head.targets(images.labels)
    head.sample_weight.copy_(balancing(torch.bincount(places, minlength=len(rows)).double()))
    head.add(images.features, images.labels)
    return head


def without(head: RidgeHead, images: OwnImages) -> RidgeHead:
    """Return sums from which images that are in them are subtracted, with the weights that they have there."""
    rest = copy.deepcopy(head)
    rest.add(images.features, images.labels, torch.full_like(images.labels, -1, dtype=torch.float64))
    rest.clear_absent()
    return rest


def mixed(common: RidgeHead, own: RidgeHead, beta: float) -> RidgeHead:
    """Return the sums common + beta * own, with the own sums scaled to the weight of the common ones."""
    if math.isinf(beta) or not common.gram[-1]:
        return copy.deepcopy(own)
    sums = copy.deepcopy(common)
    if own.gram[-1]:
        scale = beta * float(common.gram[-1] / own.gram[-1])
        sums.gram += scale * own.gram
        sums.products += scale * own.products
        sums.counts += beta * float(common.counts.sum() / own.counts.sum()) * own.counts
    return sums


def best_beta(
    common: RidgeHead,
    own: RidgeHead,
    images: OwnImages,
    solve: Callable[[RidgeHead, float], object],
    sharpness: float,
) -> float:
    """Choose how much a site's own sums count: the beta whose classifier answers its own images best, each class alike.

    Each fold of patients is tested with sums from which it is subtracted, as far as these contain it: what a site was
    away for, or has had since, is not in the common ones. What counts is `gained`, a mean of the classes' means: where
    a class has nine images, their recall moves in ninths, and chance decides. Of equal betas the smallest is chosen,
    and 0 unless another gains more than one standard error: few images decide nothing.

    Args:
        common: the sums of all sites.
        own: the site's own, as `own_sums` makes them.
        images: those that the own sums consist of, or some of them.
        solve: sets a head's weights from its sums, for a beta.
        sharpness: what a head's outputs are usually multiplied by before their softmax makes probabilities of them.
    """
    fold = folds(images.labels, images.patients)
    outputs = torch.zeros(len(BETAS), len(images.labels), len(common.rows), dtype=torch.float64)
    for number in range(int(fold.max()) + 1):
        tested = fold == number
        left_out = images.subset(tested)
        shared, kept = without(common, left_out.subset(left_out.summed)), without(own, left_out)
        for at, beta in enumerate(BETAS):
            head = mixed(shared, kept, beta)
            solve(head, beta)
            outputs[at, tested] = sharpness * head(images.features[tested]).double().cpu()
    rows = torch.tensor(common.rows)
    labels, answers = images.labels.cpu(), rows[outputs.argmax(dim=2)]
    gain, error = gains(gained(outputs, answers, rows, labels, images.patients), labels, images.patients)
    best = int(gain.argmax())
    return BETAS[best] if gain[best] > error[best] else 0.0
