"""Whether a classifier of a site's own serves it better than the common one, and which of the two answers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

FOLDS = 5
SHARPER = tuple(2.0**power for power in range(-3, 5))
"""How many times sharper than usual probabilities are tried."""


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


def gained(outputs: Tensor, answers: Tensor, rows: Tensor, labels: Tensor, patients: Sequence[str]) -> Tensor:
    """Return what each image gains by B classifiers over the first of them, Tensor[B, N], as a site would use them.

    Where a classifier would answer (`own_answers`), it gains by how much nearer its probabilities are to the label,
    among the classes that the site holds: who never learnt another class wastes none on it, and is no better for that.

    Args:
        outputs: logits of the B classifiers, Tensor[B, N, R].
        answers: their answers, Tensor[B, N].
        rows: the class that each logit stands for, Tensor[R].
        labels: of the images, Tensor[N].
        patients: whom they show.
    """
    held = torch.unique(labels)
    columns = torch.isin(rows, held).nonzero().flatten()
    label = (rows[columns] == labels[:, None]).double()
    near = torch.stack([_nearness(of_one[:, columns].double(), label, labels, patients) for of_one in outputs])
    used = torch.stack([own_answers(answers[0], of_one, held) for of_one in answers])
    return torch.where(used, near - near[0], 0.0)


def _nearness(outputs: Tensor, label: Tensor, labels: Tensor, patients: Sequence[str]) -> Tensor:
    """Return how near each image's probabilities are to its label, Tensor[N], from outputs Tensor[N, K].

    That is the negative Brier score (Brier, 1950): no image counts more than 2, where a log-likelihood is anything if a
    regression is far off. Probabilities are as sharp as serves all images best, since classifiers that are trained
    otherwise are sure by other degrees, which says nothing of who is right.
    """
    tried = torch.stack([-((times * outputs).softmax(dim=1) - label).square().sum(dim=1) for times in SHARPER])
    return tried[int(gains(tried, labels, patients)[0].argmax())]


def gains(better: Tensor, labels: Tensor, patients: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Return the mean of the classes' means of what is gained, Tensor[B], and the standard errors of that.

    A patient counts once in a class, since images of one patient tell much the same. All classes are taken to vary
    alike about their means, lest one of few patients count as certain; with one patient of each nothing tells how much
    they vary, and the error is infinite.

    Args:
        better: what each image gains over the common classifier, by each of B others, Tensor[B, N].
        labels: of the images, Tensor[N].
        patients: whom they show.
    """
    cells: dict[tuple[int, str], int] = {}
    cell = [cells.setdefault(one, len(cells)) for one in zip(labels.tolist(), patients, strict=True)]
    better, labels = _means(better, torch.tensor(cell)), torch.tensor([label for label, _ in cells])
    classes, place, counts = torch.unique(labels, return_inverse=True, return_counts=True)
    means = _means(better, place)
    spare = len(labels) - len(classes)
    variance = (better - means[:, place]).square().sum(dim=1) / spare if spare else torch.full((len(means),), math.inf)
    return means.mean(dim=1), (variance * (1 / counts).sum()).sqrt() / len(classes)


def _means(values: Tensor, group: Tensor) -> Tensor:
    """Return the mean of each group's values, Tensor[B, G], of Tensor[B, N]."""
    sums = torch.zeros(len(values), int(group.max()) + 1, dtype=values.dtype).index_add_(1, group, values)
    return sums / torch.bincount(group)


def own_answers(common: Tensor, own: Tensor, held: Tensor) -> Tensor:
    """Tell where a site's own classifier answers, Tensor[N] bool: where it and the common one see what the site holds.

    A classifier made of a site's images gives up what they do not show, and no fold of them tells. So a class that the
    site lacks is recognised at the site exactly as it is by the common classifier.

    Args:
        common: answers of the common classifier, Tensor[N].
        own: answers of the site's own, Tensor[N].
        held: classes that the own one was made of, Tensor[K].
    """
    return torch.isin(common, held) & torch.isin(own, held)
