"""Whether a classifier of a site's own serves it better than the common one, by its own images in folds of patients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

FOLDS = 5


def folds(labels: Tensor, patients: Sequence[str], count: int = FOLDS) -> Tensor:
    """Deal images into folds, Tensor[N] int64, so that no patient is in two and each class is in as many as can be.

    Args:
        labels: of the images, Tensor[N].
        patients: whom they show.
        count: most folds.
    """
    fold_of: dict[str, int] = {}
    dealt = 0
    for label in torch.unique(labels).tolist():
        for place in (labels == label).nonzero().flatten().tolist():
            if patients[place] not in fold_of:
                fold_of[patients[place]] = dealt % count
                dealt += 1
    return torch.tensor([fold_of[patient] for patient in patients], dtype=torch.int64)


def gains(better: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean of the classes' means of what is gained, Tensor[B], and the standard errors of that.

    All classes are taken to vary alike about their means, lest one of few images count as certain.

    Args:
        better: what each image gains over the common classifier, by each of B others, Tensor[B, N].
        labels: of the images, Tensor[N].
    """
    classes, place, counts = torch.unique(labels, return_inverse=True, return_counts=True)
    means = torch.zeros(len(better), len(classes), dtype=better.dtype).index_add_(1, place, better) / counts
    variance = (better - means[:, place]).square().mean(dim=1)
    return means.mean(dim=1), (variance * (1 / counts).sum()).sqrt() / len(classes)
