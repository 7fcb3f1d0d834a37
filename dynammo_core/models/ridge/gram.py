"""A Gram matrix as it is kept, its upper triangle in a row, and as it travels where images are few: a thin factor.

With features x of class c, its mean m_c, weights w of samples and p_c the weighted sum of the class's (x, 1), the Gram
matrix of (x, 1) is the scatter within classes, sum of w (x - m_c) (x - m_c)^T, plus the sum of p_c p_c^T / (w n_c). A
site sends each p_c anyway, and the scatter of n images of C classes has a factor F of n - C rows: it is F^T F.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

ROUNDING = 1e-12
"""Relative deviation below which a feature is constant, but for rounding."""

BLOCK = 256
"""Rows that are mirrored at a time: such a block stays in the processor's cache."""


def pack(matrix: Tensor) -> Tensor:
    """Return the upper triangle of a symmetric matrix Tensor[N, N] as a vector: half of it is all that need be kept."""
    whole, size = matrix.cpu().numpy(), len(matrix)
    triangle, start = np.empty(size * (size + 1) // 2, dtype=whole.dtype), 0
    for row in range(size):  # slices, as indices of all numbers would take more memory than the matrix
        triangle[start : start + size - row] = whole[row, row:]
        start += size - row
    return torch.from_numpy(triangle).to(matrix.device)


def upper(triangle: Tensor, size: int) -> Tensor:
    """Return the upper triangle that `pack` took, Tensor[N, N], with zeros below: half the work of `unpack`."""
    numbers, start = triangle.cpu().numpy(), 0
    whole = np.zeros((size, size), dtype=numbers.dtype)
    for row in range(size):
        whole[row, row:] = numbers[start : start + size - row]
        start += size - row
    return torch.from_numpy(whole).to(triangle.device)


def unpack(triangle: Tensor, size: int) -> Tensor:
    """Return the symmetric matrix Tensor[N, N] that `pack` flattened."""
    whole = upper(triangle, size)
    for start in range(0, size, BLOCK):
        end = start + BLOCK
        whole[end:, start:end] = whole[start:end, end:].T
        block = whole[start:end, start:end]
        block += block.triu(1).T
    return whole


def travelling_shape(counts: Sequence[int], features: int, most: int | None = None) -> tuple[int, ...]:
    """Return the shape in which a Gram matrix travels: that of its thin factor, or of the triangle if that is shorter.

    Args:
        counts: numbers of images of each class.
        features: D, without the 1 beside them.
        most: rows that the factor may have; None for all.
    """
    rows = _rank(counts, features)
    rows = rows if most is None else min(rows, most)
    triangle = (features + 1) * (features + 2) // 2
    return (rows, features) if rows * features < triangle else (triangle,)


def thin_factor(features: Tensor, rows: Tensor, weights: Tensor, size: int) -> Tensor:
    """Return the thin factor of the scatter within classes, which says of the images no more than the scatter does.

    With X the centred and weighted features, Z random numbers that everybody knows, and X Z = Q R with R's diagonal
    positive, the factor is Q^T X = R^-T Z^T (X^T X), where R is the Cholesky factor of Z^T (X^T X) Z: a function of the
    scatter alone. (The images' features are a factor, too.) It is exact if it has as many rows as X has dimensions
    (range finder: Halko et al., arXiv 0909.4061).

    Args:
        features: Tensor[B, D], float64.
        rows: the row of each image's class, Tensor[B] int64.
        weights: w of each image, Tensor[B].
        size: number of rows of the factor, n - C.
    """
    # In an order of their own, so that the same images give the same bits in whatever order they came.
    order = torch.unique(torch.cat([rows.unsqueeze(1), features], dim=1), dim=0, return_inverse=True)[1].argsort()
    features, rows, weights = features[order], rows[order], weights[order]
    counts = torch.bincount(rows)
    sums = features.new_zeros(len(counts), features.shape[1]).index_add_(0, rows, features)
    centred = (features - (sums / counts.clamp_min(1).unsqueeze(1))[rows]) * weights.sqrt().unsqueeze(1)
    lengths = centred.norm(dim=0)
    varies = lengths > ROUNDING * features.norm(dim=0) * weights.max().sqrt()
    scaled = centred / torch.where(varies, lengths, torch.inf)  # or features in small units would not count
    known = torch.randn(features.shape[1], size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    basis, triangular = torch.linalg.qr(scaled @ known.to(features.device))
    signs = torch.where(triangular.diagonal() < 0, -1.0, 1.0)
    factor: Tensor = (basis * signs).T @ centred
    return factor


def shortened(factor: Tensor, size: int) -> Tensor:
    """Return a factor of `size` rows: those that keep most of the scatter, and last what each feature has lost.

    Each feature is measured by its own deviation. The last row is the square root of each feature's sum of squares that
    the other rows lack, for the diagonal of the matrix, as in probabilistic PCA (Tipping and Bishop, 1999), but by
    feature. Without it classes would differ in directions in which their images seem not to vary, labels would be
    explained entirely, and generalised cross-validation would choose no regulariser at all.
    """
    if len(factor) <= size:
        return factor
    lengths = factor.norm(dim=0)
    scaled = factor / torch.where(lengths > 0, lengths, torch.inf)
    vectors: Tensor = torch.linalg.eigh(scaled @ scaled.T).eigenvectors
    return _cut(vectors.T @ factor, size)


def factor_of(triangle: Tensor, products: Tensor, size: int) -> Tensor:
    """Return the scatter within classes of a Gram matrix as `shortened` does, from its triangle."""
    matrix = unpack(triangle, products.shape[1])
    classes, sign = _between(products)
    scatter = sign * (matrix - sign * (classes.T @ classes))[:-1, :-1]
    lengths = scatter.diagonal().clamp_min(0).sqrt()
    values, vectors = torch.linalg.eigh(scatter / torch.outer(*2 * (torch.where(lengths > 0, lengths, torch.inf),)))
    return _cut((vectors * values.clamp_min(0).sqrt()).T * lengths, size)


def triangle_of(factor: Tensor, products: Tensor, counts: Tensor) -> Tensor:
    """Return the triangle of the Gram matrix that a factor and products stand for.

    If the products are negative, as of images that are taken out again, so is the matrix.

    Args:
        factor: Tensor[K, D]; if it has fewer rows than the scatter of so many images, as `shortened` made it.
        products: Tensor[R, D + 1].
        counts: numbers of images of each class, Tensor[R].
    """
    classes, sign = _between(products)
    matrix = classes.T @ classes
    lost = 1 if len(factor) < _rank(counts.abs().long().tolist(), factor.shape[1]) else 0
    kept = factor[: len(factor) - lost]
    matrix[:-1, :-1].addmm_(kept.T, kept)
    matrix.diagonal()[:-1].add_(factor[len(kept) :].square().sum(dim=0))
    return pack(sign * matrix) if sign < 0 else pack(matrix)


def _rank(counts: Sequence[int], features: int) -> int:
    """Return the largest rank that the scatter within classes of so many images of each class can have."""
    return min(sum(max(count - 1, 0) for count in counts), features)


def _cut(rows: Tensor, size: int) -> Tensor:
    """Return the last of the rows, of which the first are the least, and below them the lengths of what was cut."""
    first = len(rows) - (size - 1)
    return torch.cat([rows[first:], rows[:first].norm(dim=0, keepdim=True)])


def _between(products: Tensor) -> tuple[Tensor, float]:
    """Return p / (w n)^(1/2) of each class that has images, Tensor[C, D + 1], and the sign of the numbers of images."""
    numbers = products[:, -1]
    present = numbers != 0
    return products[present] / numbers[present].abs().sqrt().unsqueeze(1), -1.0 if numbers.sum() < 0 else 1.0
