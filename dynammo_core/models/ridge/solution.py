"""Solve a linear classifier from sums over samples: by ridge regression or, if noise hides them, a discriminant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from dynammo_core.models.ridge.gram import unpack
from dynammo_core.models.ridge.spectrum import CANDIDATES, FullSpectrum, cholesky, least_error, spectrum

Regulariser: TypeAlias = float | Literal["dimension"] | None
"""A number, the rule `dimension`, or what cross-validation chooses; `ridge_solution` explains all three."""


@dataclass(frozen=True)
class Solution:
    """A linear classifier, Tensor[R, D] and Tensor[R], and the regulariser that made it."""

    weight: Tensor
    bias: Tensor
    regulariser: float


def ridge_solution(
    gram: Tensor,
    products: Tensor,
    counts: Tensor,
    sample_weight: Tensor,
    regulariser: Regulariser = None,
    shares: Tensor | None = None,
    towards: Tensor | None = None,
) -> Solution:
    """Return the ridge solution on standardised features; the bias is not penalised.

    Weights are shrunk towards 0, or others: these plus the ridge solution of what they leave unexplained. Without any
    sample all is 0.

    Args:
        gram: as `RidgeHead` describes it, Tensor[P].
        products: as `RidgeHead` describes them, Tensor[R, D + 1].
        counts: numbers of samples of each class, Tensor[R].
        sample_weight: what each sample of a class weighs in the sums, Tensor[R].
        regulariser: times the number of samples; by default the candidate with the least generalised cross-validation
            error (Golub, Heath and Wahba, 1979), which needs nothing but the sums, and all their eigenvalues: a given
            regulariser is solved many times faster. `dimension` is D over the effective number of samples: the best for
            weights drawn at random whose signal is as large as the noise (Dobriban and Wager, arXiv 1507.03003, theorem
            2.1). Cross-validation smooths too much where classes are uneven, as it takes the leverage of rare and
            common samples for the same.
        shares: how frequent each class is taken to be, Tensor[R], 1 in all; by default as its samples weigh. The
            scatter within classes stays that of the sums.
        towards: the weights to shrink towards, Tensor[R, D], which constant features keep; by default 0 ("biased
            regularisation": Kuzborskij and Orabona, 2013). Cross-validation chooses the regulariser as towards 0.
    """
    weight_of_all = gram[-1]
    if not weight_of_all:
        zeros = torch.zeros_like(products)
        used = regulariser if isinstance(regulariser, float) else float(CANDIDATES[-1])
        return Solution(zeros[:, :-1], zeros[:, -1], used)
    whole = unpack(gram, products.shape[1])
    if shares is not None:
        products = _shared(whole, products, shares)
    correlation, mean, scale = standardised(whole)
    del whole
    means = products[:, -1] / weight_of_all
    cross = (products[:, :-1] / weight_of_all - torch.outer(means, mean)) / scale  # [R, D]
    explained = None if towards is None else torch.where(scale.isfinite(), towards * scale, 0.0) @ correlation
    unexplained = cross if explained is None else cross - explained
    samples = effective_samples(counts, sample_weight)
    if isinstance(regulariser, str):
        regulariser = int(scale.isfinite().sum()) / samples
    if regulariser is None:
        found = spectrum(correlation, rank=int(counts.sum()) - 1)
        values, projected = found.values.clamp_min(0), found.project(cross)
        variance = (means - means.square()).sum()  # of one-hot labels
        regulariser = least_error(values, projected, variance, samples)
        remaining = projected if explained is None else projected - found.project(explained)
        solved = found.combine(remaining / (values + regulariser))
    else:
        solved = torch.cholesky_solve(unexplained.T, cholesky(correlation, regulariser)).T
    weight = solved / scale
    weight = weight if towards is None else weight + towards
    return Solution(weight, means - weight @ mean, regulariser)


def shrunken_discriminant(gram: Tensor, products: Tensor, regulariser: float | None = None) -> Solution:
    """Return the linear discriminant of noised sums, whose noise hurts it less than ridge regression.

    A row's weight is A d of Mahalanobis length 1, (d^T A d)^(1/2), with d the class's mean minus the mean of all
    classes' means, and A the inverse of the regularised covariance. Ridge regression points the same way, but if
    much shrinks its answer is its bias, which depends only on noised numbers of images; and features cannot be
    standardised, since noise would take for large what is small. A true covariance has no negative eigenvalue, and
    noise moves eigenvalues down as far as up (Wigner): the lowest says how large the noise is. What is not above
    that counts as 0, which makes the covariance positive semidefinite, and that is the regulariser by default.

    Args:
        gram: as `RidgeHead` describes it, Tensor[P].
        products: as `RidgeHead` describes them, Tensor[R, D + 1].
        regulariser: in units of the covariance.
    """
    whole, totals = unpack(gram, products.shape[1]), products[:, -1:]
    samples = torch.where(gram[-1] > 0, gram[-1], 1)
    mean = whole[:-1, -1] / samples
    found = FullSpectrum(whole[:-1, :-1] / samples - torch.outer(mean, mean))
    values = found.values
    noise = max(float(-values.min()), 1e-6 * float(values.max()))
    if regulariser is None:
        regulariser = noise
    class_means = products[:, :-1] / torch.where(totals > 0, totals, 1)
    centre = class_means.mean(dim=0)
    projected = found.project(class_means - centre)
    scaled = projected / (torch.where(values > noise, values, 0.0) + regulariser)
    lengths = (scaled * projected).sum(dim=1, keepdim=True).sqrt()
    weight = found.combine(scaled / lengths.clamp_min(torch.finfo(lengths.dtype).tiny))
    return Solution(weight, -weight @ centre, regulariser)


def _shared(gram: Tensor, products: Tensor, shares: Tensor) -> Tensor:
    """Return the products as if each class had its share of all weight, and change the Gram matrix as much, in place.

    With t the weight of a class and m the mean of its (x, 1), the part of the matrix between classes is the sum of
    t m m^T. Sums whose classes have these shares already stay as they are, to the bit.
    """
    totals = products[:, -1]
    wanted = shares * totals.sum()
    if (wanted - totals).abs().max() <= 1e-9 * totals.sum():
        return products
    means = products / torch.where(totals != 0, totals, torch.inf).unsqueeze(1)
    gram.addmm_(means.T * (wanted - totals), means)
    return wanted.unsqueeze(1) * means


def standardised(gram: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the features' correlations Tensor[D, D], their means, and their deviations, of constant ones infinite.

    A constant feature says nothing; its correlations are 0.
    """
    mean = gram[:-1, -1] / gram[-1, -1]
    covariance = gram[:-1, :-1] / gram[-1, -1]
    covariance -= torch.outer(mean, mean)
    scale = deviations(covariance.diagonal())
    covariance /= torch.outer(scale, scale)
    return covariance, mean, scale


def deviations(variances: Tensor) -> Tensor:
    """Return the features' standard deviations Tensor[D], of constant ones infinite, from their variances."""
    scale = variances.clamp_min(0).sqrt()
    return torch.where(scale > 1e-6 * scale.max(), scale, torch.inf)


def effective_samples(counts: Tensor, sample_weight: Tensor) -> float:
    """Return (sum of weights)^2 / sum of squared weights (Kish, 1965): few heavy samples tell less than many."""
    return float((counts * sample_weight).sum().square() / (counts * sample_weight.square()).sum())
