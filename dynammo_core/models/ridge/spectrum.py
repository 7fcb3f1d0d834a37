"""The eigenvalues of a large symmetric matrix, and a few vectors in the basis of its eigenvectors, by LAPACK.

A ridge regression needs eigenvectors only to project as many vectors onto them as there are classes, so the matrix of
eigenvectors, the larger part of an eigendecomposition, is never formed. A site, which solves at most a head of its own,
may lack SciPy: there PyTorch makes the whole eigendecomposition.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

THIN = 0.75
"""Share of a matrix's size below which its rank makes the thin factor the faster way (`dynammo-sim bench solves`)."""

CANDIDATES = torch.logspace(-6, 3, 37, dtype=torch.float64, device="cpu")
"""Regularisers that are tried, as multiples of the number of samples."""

TIE = 1e-9
"""Relative difference below which two candidates are as good."""

JITTERS = (1e-14, 1e-13, 1e-12, 1e-11, 1e-10, 1e-9)
"""Amounts added to the diagonal of a correlation matrix until it is positive definite."""


class Spectrum(Protocol):
    """A symmetric matrix Tensor[N, N] by its eigenvalues and eigenvectors.

    Attributes:
        values: Tensor[K], ascending, those that are not 0 among them.
    """

    values: Tensor

    def project(self, vectors: Tensor) -> Tensor:
        """Return the coordinates Tensor[R, K] of vectors Tensor[R, N] along the eigenvectors."""
        ...

    def combine(self, coordinates: Tensor) -> Tensor:
        """Return the vectors Tensor[R, N] with these coordinates, Tensor[R, K]."""
        ...


def spectrum(matrix: Tensor, rank: int) -> Spectrum:
    """Return the spectrum of a symmetric matrix, by the faster of two ways, on all cores.

    Args:
        matrix: Tensor[N, N], float64; it is used up. At most two more of its size are made.
        rank: the largest that it can have, but for rounding; below N, the matrix is positive semidefinite. Cut sums
            (`gram.shortened`) have a larger one, which takes longer and is as exact.
    """
    if find_spec("scipy") is None:
        return WholeSpectrum(matrix)
    return ThinSpectrum(matrix) if rank < THIN * len(matrix) else FullSpectrum(matrix)


class WholeSpectrum:
    """The spectrum with its matrix of eigenvectors, by PyTorch."""

    def __init__(self, matrix: Tensor) -> None:
        self.values, self._vectors = torch.linalg.eigh(matrix)

    def project(self, vectors: Tensor) -> Tensor:
        """Return the coordinates Tensor[R, N] of vectors Tensor[R, N] along the eigenvectors."""
        projected: Tensor = vectors @ self._vectors
        return projected

    def combine(self, coordinates: Tensor) -> Tensor:
        """Return the vectors Tensor[R, N] with these coordinates, Tensor[R, N]."""
        combined: Tensor = coordinates @ self._vectors.T
        return combined


class FullSpectrum:
    """The spectrum by reduction to a tridiagonal matrix T, whose eigenvectors take no more than their own size.

    The matrix is Q T Q^T, with Q a product of reflections, which stay where they were found.
    """

    def __init__(self, matrix: Tensor) -> None:
        from scipy.linalg import eigh_tridiagonal, lapack

        columns = matrix.cpu().numpy().T  # the same, as it is symmetric, in the order that LAPACK reads
        work = int(lapack.dsytrd_lwork(len(columns), lower=1)[0])
        reduced, diagonal, beside, self._scales, _ = lapack.dsytrd(columns, lower=1, lwork=work, overwrite_a=1)
        self._reflections = reduced[1:, :-1]
        # By divide and conquer: of relatively robust representations, as fast, a rank-deficient matrix was refused.
        values, vectors = eigh_tridiagonal(diagonal, beside, check_finite=False, lapack_driver="stevd")
        self.values = torch.from_numpy(values).to(matrix.device)
        self._vectors = torch.from_numpy(vectors)

    def project(self, vectors: Tensor) -> Tensor:
        """Return the coordinates Tensor[R, N] of vectors Tensor[R, N] along the eigenvectors."""
        return (self._reflected(vectors.cpu(), "T") @ self._vectors).to(vectors.device)

    def combine(self, coordinates: Tensor) -> Tensor:
        """Return the vectors Tensor[R, N] with these coordinates, Tensor[R, N]."""
        return self._reflected(coordinates.cpu() @ self._vectors.T, "N").to(coordinates.device)

    def _reflected(self, vectors: Tensor, transposed: str) -> Tensor:
        """Return Q^T x ("T") or Q x ("N") of each row x; the reflections leave the first coordinate as it is."""
        from scipy.linalg import lapack

        turned = vectors.clone()
        if len(self._scales):
            others = np.asfortranarray(turned[:, 1:].numpy().T)
            work = int(lapack.dormqr("L", transposed, self._reflections, self._scales, others, -1)[1][0])
            others, _, _ = lapack.dormqr("L", transposed, self._reflections, self._scales, others, work, overwrite_c=1)
            turned[:, 1:] = torch.from_numpy(others.T)
        return turned


class ThinSpectrum:
    """The spectrum of a positive semidefinite matrix of low rank, by its pivoted Cholesky factor L, Tensor[N, K].

    L^T L has the eigenvalues of L L^T that are not 0, and with its eigenvectors w those of L L^T are L w / |L w|.
    """

    def __init__(self, matrix: Tensor) -> None:
        from scipy.linalg import lapack

        columns, order, rank, _ = lapack.dpstrf(matrix.cpu().numpy().T, lower=1, overwrite_a=1)
        factor = torch.from_numpy(np.ascontiguousarray(columns[:, : max(rank, 1)])).tril_()
        self._factor = torch.empty_like(factor)
        self._factor[torch.from_numpy(order.astype(np.int64)) - 1] = factor
        self._inner = FullSpectrum(self._factor.T @ self._factor)
        values = self._inner.values
        rounding = len(matrix) * torch.finfo(values.dtype).eps * values.max()
        self._lengths = torch.where(values > rounding, values, torch.inf).sqrt()
        self.values = values.clamp_min(0).to(matrix.device)

    def project(self, vectors: Tensor) -> Tensor:
        """Return the coordinates Tensor[R, K] of vectors Tensor[R, N] along the eigenvectors."""
        return (self._inner.project(vectors.cpu() @ self._factor) / self._lengths).to(vectors.device)

    def combine(self, coordinates: Tensor) -> Tensor:
        """Return the vectors Tensor[R, N] with these coordinates, Tensor[R, K]."""
        return (self._inner.combine(coordinates.cpu() / self._lengths) @ self._factor.T).to(coordinates.device)


def cholesky(correlation: Tensor, regulariser: float) -> Tensor:
    """Return the lower factor of a correlation matrix plus a diagonal, with jitter if rounding made it indefinite."""
    factor = correlation
    for jitter in (0.0, *JITTERS):
        diagonal = torch.full_like(correlation[0], regulariser + jitter)
        factor, failed = torch.linalg.cholesky_ex(correlation + torch.diag(diagonal))
        if not failed:
            break
    return factor


def least_error(values: Tensor, projected: Tensor, variance: Tensor, samples: float) -> float:
    """Return the candidate regulariser with the least (residual sum of squares) / (1 - degrees of freedom / samples)^2.

    Of candidates that are as good, as all are for two samples, it is the largest.

    The residual is that of least squares plus what shrinking adds: two sums of positive terms, where the textbook
    form is a small difference of large numbers.
    """
    candidates = CANDIDATES.to(values.device).unsqueeze(1)
    spanned = values > 1e-10 * values.max()
    explained = projected.square().sum(dim=0)[spanned] / values[spanned]
    shrinkage = candidates / (values[spanned] + candidates)  # [candidates, directions]
    unexplained = variance - explained.sum()
    # Fewer images than features are explained entirely: what rounding leaves must not decide between candidates.
    unexplained = torch.where(unexplained > 1e-12 * variance, unexplained, 0.0)
    residual = unexplained + (explained * shrinkage.square()).sum(dim=1)
    left = 1 - (1 + (1 - shrinkage).sum(dim=1)) / samples
    error = torch.where(left > 0, residual / left.square(), torch.inf)
    return float(CANDIDATES[int((~(error > error.min() * (1 + TIE))).nonzero().max())])
