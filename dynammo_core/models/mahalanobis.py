"""Nearest class mean by Mahalanobis distance, from the sums that a ridge regression would be solved from."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from dynammo_core.models.ridge.gram import unpack
from dynammo_core.models.ridge.head import RidgeHead

FARTHEST = 1e4
"""Half a squared distance that no two unit vectors have: that of a class of which nobody has had an image."""


class SharedCovarianceHead(RidgeHead):
    """Minus half the squared Mahalanobis distance to each class's mean, with features and means of unit length.

    The rows share the covariance within their classes. So what the distance says of the features alone is the same for
    all of them and left out, and the rest is linear.
    """

    def forward(self, features: Tensor) -> Tensor:
        """Return logits, Tensor[B, R]."""
        return F.linear(F.normalize(features, dim=1), self.weight, self.bias)

    @torch.no_grad()
    def solve_distances(self, variance: float, covariance: float) -> None:
        """Set what answers from the sums, with the covariance as `inverse_correlation` shrinks it."""
        means, inverse = self._solved(variance, covariance)
        towards = means @ inverse
        self.weight.copy_(towards)
        self.bias.copy_(torch.where(self.counts > 0, -(towards * means).sum(dim=1) / 2, -FARTHEST))

    def _solved(self, variance: float, covariance: float) -> tuple[Tensor, Tensor]:
        """Return the classes' means, of unit length, Tensor[R, D], and the inverse correlations Tensor[D, D]."""
        whole, present = unpack(self.gram, self.products.shape[1]), self.counts > 0
        scaled = self.products[present] / self.counts[present].sqrt().unsqueeze(1)
        scatter = (whole - scaled.T @ scaled)[:-1, :-1]
        within = scatter / (self.counts.sum() - present.sum()).clamp_min(1)
        return F.normalize(self.products[:, :-1], dim=1), inverse_correlation(within, variance, covariance)


class OwnCovarianceHead(SharedCovarianceHead):
    """The same for one class with a covariance of its own: minus half of |W x + b|^2, Tensor[B, 1], of unit features x.

    `weight` is W, Tensor[D, D], with W^T W the inverse, and `bias` is b, Tensor[D], minus W times the mean.
    """

    def __init__(self, feature_dim: int, rows: tuple[int, ...]) -> None:
        super().__init__(feature_dim, rows)
        self.weight = torch.zeros(feature_dim, feature_dim)
        self.bias = torch.zeros(feature_dim)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits, Tensor[B, 1]."""
        return -super().forward(features).square().sum(dim=1, keepdim=True) / 2

    @torch.no_grad()
    def solve_distances(self, variance: float, covariance: float) -> None:
        """Set what answers from the sums of the one class, with its covariance as `inverse_correlation` shrinks it."""
        if not self.counts.any():
            self.weight.zero_()
            self.bias.fill_((2 * FARTHEST / len(self.bias)) ** 0.5)
            return
        means, inverse = self._solved(variance, covariance)
        whitening = torch.linalg.cholesky(inverse).T
        self.weight.copy_(whitening)
        self.bias.copy_(-(whitening @ means[0]))


def inverse_correlation(within: Tensor, variance: float, covariance: float) -> Tensor:
    """Return the inverse of the correlations of a covariance Tensor[D, D] that is shrunk before.

    The mean of its diagonal is added to the diagonal `variance` times, and the mean of all else to all else
    `covariance` times, which leaves it positive definite if `variance` is larger than 0, and not below `covariance`.
    Without any spread all features count the same. Source: FeCAM (Goswami et al., arXiv 2309.14062).
    """
    size, diagonal = len(within), within.diagonal().clamp_min(0)
    if not diagonal.any():
        return torch.eye(size, dtype=within.dtype, device=within.device)
    beside = (within.sum() - within.trace()) / max(size * (size - 1), 1)
    shrunk = within + covariance * beside
    shrunk.diagonal().copy_(diagonal + variance * diagonal.mean())
    scale = shrunk.diagonal().rsqrt()
    inverse: Tensor = torch.cholesky_inverse(torch.linalg.cholesky(shrunk * torch.outer(scale, scale)))
    return inverse
