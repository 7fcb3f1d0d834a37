"""Checks that sums for ridge regression belong to some samples, as far as the sums themselves can show."""

from __future__ import annotations

import torch
from torch import Tensor

from dynammo_core.wire.compression.float16 import LARGEST

MOST_NOISED_WEIGHT = 1.0
"""Largest weight of a class's samples in noised sums: the noise is made for it, whatever weights are received."""

TOLERANCE = 1e-7
"""Relative error that adding up in float64 leaves in an exact relation."""

SAME_AGAIN = 1e-4
"""Relative change of the products of features that are computed again in float32, in other batches."""


def obstacle_to_sums(
    gram: Tensor,
    products: Tensor,
    weights: Tensor,
    weighted: Tensor,
    *,
    indefinite: bool = True,
    noised: bool = False,
    rounding: float = 0.0,
    before: Tensor | None = None,
) -> str:
    """Say why no samples have these sums of a `RidgeHead`; empty if some samples have them.

    With features x augmented by a 1, one-hot labels y and weights w, the sums are blocks of the Gram matrix of
    (x, y). So that matrix is positive semidefinite, which, since its block of labels is diagonal, says that the
    scatter within classes is: gram - sum over classes of p p^T / (w n), p a class's row of `products`, n its count. The
    products' last column is w n; and as each sample has one label, the products add up to the last column of gram. Of
    these, noise leaves the last two, from which `RidgeHead.blur` makes what it does not noise.

    Args:
        gram: the upper triangle, Tensor[N, N], N = D + 1, float64, finite; it is used up.
        products: Tensor[R, N], float64, finite; not modified.
        weights: w of each row's class, Tensor[R].
        weighted: w n of each row's class, Tensor[R].
        indefinite: whether to look for negative eigenvalues, which takes a Cholesky factorisation.
        noised: whether noise hides single images.
        rounding: how far each number may be off, beyond the rounding of float64.
        before: if sums computed again were subtracted from these: each feature's sum of squares before, Tensor[N].
    """
    total, near = float(weighted.sum()), TOLERANCE * float(weighted.sum()) + rounding
    if (products[:, -1] - weighted).abs().max() > near or abs(float(gram[-1, -1]) - total) > near:
        return "the number of samples in the sums differs from 'class_counts'"
    adding_up = TOLERANCE * (products.abs().sum(dim=0) + gram.diagonal().abs().sqrt() * total**0.5)
    if before is not None:
        adding_up += SAME_AGAIN * (before * before[-1]).clamp_min(0).sqrt()
    if ((products.sum(dim=0) - gram[:, -1]).abs() > adding_up + rounding * (len(products) + 1)).any():
        return "the rows of 'products' do not add up to 'gram'"
    largest = LARGEST**2 * (total + (MOST_NOISED_WEIGHT if noised else float(weights.max())))
    sums = torch.cat([gram.flatten(), products.flatten()]) if noised else gram.diagonal()
    if sums.abs().max() > largest:
        return f"a sum is too large for samples whose features are at most {LARGEST:g}"
    if noised:
        return ""
    absent = products[weighted == 0]
    if absent.numel() and absent.abs().max() > rounding:
        return "'products' is not 0 for classes without samples"
    known = gram.diagonal().clamp_min(0) if before is None else before.clamp_min(0)
    within = TOLERANCE if before is None else SAME_AGAIN
    if indefinite and _indefinite(gram, products, weighted, known, within, rounding):
        return "'gram' is not positive semidefinite within the classes"
    return ""


def obstacle_to_thin_sums(factor: Tensor, products: Tensor, weights: Tensor, weighted: Tensor) -> str:
    """Say why no samples have these sums of a `RidgeHead` whose Gram matrix came as a thin factor; empty if some have.

    The Gram matrix is made of the factor and the products, so that it fits them, and no eigenvalue of it is negative.

    Args:
        factor: Tensor[K, D], float64, finite.
        products: Tensor[R, D + 1], float64, finite.
        weights: w of each row's class, Tensor[R].
        weighted: w n of each row's class, Tensor[R].
    """
    total = float(weighted.sum())
    if (products[:, -1] - weighted).abs().max() > TOLERANCE * total:
        return "the number of samples in the sums differs from 'class_counts'"
    absent = products[weighted == 0]
    if absent.numel() and absent.abs().max() > 0:
        return "'products' is not 0 for classes without samples"
    between = products[:, :-1].square() / torch.where(weighted > 0, weighted, torch.inf).unsqueeze(1)
    if (factor.square().sum(dim=0) + between.sum(dim=0)).max() > LARGEST**2 * (total + float(weights.max())):
        return f"a sum is too large for samples whose features are at most {LARGEST:g}"
    return ""


def _indefinite(
    gram: Tensor, products: Tensor, weighted: Tensor, squares: Tensor, within: float, rounding: float
) -> bool:
    """Tell whether the scatter within classes has a negative eigenvalue beyond rounding; `gram` is used up.

    The test is relative to each feature's sum of squares, Tensor[N], whatever its unit, and takes one Cholesky
    factorisation instead of eigenvalues.
    """
    present, size = weighted > 0, len(gram)
    rows, numbers = products[present], weighted[present, None]
    means = float((rows / numbers).norm(dim=1).sum())
    slack = rounding * (size + 2 * size**0.5 * means)
    scale = (squares + slack).clamp_min(torch.finfo(squares.dtype).tiny).rsqrt()
    scaled = rows * (numbers.rsqrt() * scale)
    gram.mul_(scale).mul_(scale.unsqueeze(1)).addmm_(scaled.T, scaled, alpha=-1)
    gram.diagonal().add_(within + slack * scale.square())
    factor, failed = torch.linalg.cholesky_ex(gram, upper=True)
    return bool(failed) or not bool(factor.diagonal().isfinite().all())
