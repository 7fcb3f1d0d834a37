"""How features drift when their network changes, and how sums over old features follow without any old image.

Images that both networks see make pairs of old features p and new ones q. Ridge regression on sums over pairs gives an
affine map q ~ T (p, 1), and the covariance R of what the map leaves unexplained. A map is linear, so that moving the
features of images and then summing them is moving their sums:

    gram of (x, 1)  ->  T gram T^T + w R,      products  ->  products T^T,

with w the weight of all images in the sums. Without w R moved classes would vary less than they do, and the classifier
would trust their directions too much. Sources: drift of class means, SDC (Yu et al., arXiv 2004.00440); of means and
covariances by a linear map, DPCR (He et al., arXiv 2503.05423) and AdaGauss (Rypesc et al., arXiv 2409.18265). Here
map, residual covariance and regulariser follow from sums alone, so from as many sites as there are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dynammo_core.models.ridge.gram import pack, unpack
from dynammo_core.models.ridge.solution import deviations
from dynammo_core.models.ridge.spectrum import least_error, spectrum

UNCHANGED = 1e-10
"""Share of a feature's variance below which its change is rounding."""

SMALLEST = 0.3
"""Share of all features' root mean square deviation that one is measured by at least."""


@dataclass(frozen=True)
class Drift:
    """An affine map from old features to new ones, and the covariance of what it leaves unexplained.

    Attributes:
        matrix: T, Tensor[E + 1, D + 1], float64, takes (p, 1) to (q, 1).
        residual: R, Tensor[E, E], float64.
    """

    matrix: Tensor
    residual: Tensor

    @classmethod
    def kept(cls, tensors: Mapping[str, Tensor]) -> Drift:
        """Return what `tensors` returned."""
        matrix = tensors["matrix"].double()
        return cls(matrix, unpack(tensors["residual"].double(), len(matrix) - 1))

    def tensors(self) -> dict[str, Tensor]:
        """Return it to be kept, in float32, which rounds off far less than pairs leave open; R is a triangle."""
        return {"matrix": self.matrix.float(), "residual": pack(self.residual).float()}

    def moved(self, gram: Tensor, products: Tensor, *, residual: bool = True) -> tuple[Tensor, Tensor]:
        """Return sums as a `RidgeHead` keeps them, as if they had been taken of the new features.

        Args:
            gram: the triangle over old features, Tensor[(D + 1)(D + 2) / 2].
            products: Tensor[R, D + 1].
            residual: whether to add what the map leaves unexplained.
        """
        whole: Tensor = self.matrix @ unpack(gram, self.matrix.shape[1]) @ self.matrix.T
        if residual:
            whole[:-1, :-1] += gram[-1] * self.residual
        return pack(whole), products @ self.matrix.T


def estimate_drift(gram: Tensor, old: int, new: int, *, alike: bool) -> Drift:
    """Estimate how features drift from sums over pairs, by ridge regression.

    The regulariser is the one with the least generalised cross-validation error, over all new features in units of
    their deviations. Old features are standardised, but for those that hardly vary among the pairs: they may vary among
    past images, which a map that blows them up would throw far away.

    Args:
        gram: sum over pairs of (p, q, 1) (p, q, 1)^T, its upper triangle, float64.
        old: D, number of old features.
        new: E, number of new features.
        alike: whether feature i is the same quantity in both, as in one network before and after training. The map is
            then shrunk towards the identity: what the pairs do not show to change stays. Otherwise it is shrunk towards
            the new features' mean.
    """
    sums = unpack(gram, old + new + 1)
    pairs, mean = float(sums[-1, -1]), sums[:-1, -1] / sums[-1, -1]
    covariance = sums[:-1, :-1] / pairs - torch.outer(mean, mean)
    of_old, across, of_new = covariance[:old, :old], covariance[old:, :old], covariance[old:, old:]
    change = of_new - across - across.T + of_old if alike else of_new.clone()
    cross = across - of_old if alike else across
    still = change.diagonal() <= UNCHANGED * of_new.diagonal()
    change[still], change[:, still] = 0.0, 0.0
    scale = deviations(of_old.diagonal().clamp_min(SMALLEST**2 * of_old.diagonal().mean()))
    cross = torch.where(still.unsqueeze(1), 0.0, cross / scale)
    found = spectrum(of_old / torch.outer(scale, scale), rank=int(pairs) - 1)
    values, projected = found.values.clamp_min(0), found.project(cross)
    spread = deviations(of_new.diagonal())
    error_of = (values, projected / spread.unsqueeze(1), (change.diagonal() / spread.square()).sum())
    regulariser = least_error(*error_of, pairs)
    degrees = 1 + float((values / (values + regulariser)).sum())
    shrunk = projected / (values + regulariser)
    if degrees >= pairs:  # too few pairs for any map
        shrunk, degrees = torch.zeros_like(projected), 1.0
    matrix = torch.zeros(new + 1, old + 1, dtype=gram.dtype, device=gram.device)
    matrix[:-1, :-1] = found.combine(shrunk) / scale
    if alike:
        matrix.diagonal()[:-1] += 1
    matrix[:-1, -1] = mean[old:] - matrix[:-1, :-1] @ mean[:old]
    matrix[-1, -1] = 1
    explained = shrunk @ projected.T
    residual = change - explained - explained.T + (shrunk * values) @ shrunk.T
    return Drift(matrix, residual / max(1 - degrees / pairs, 1 / pairs) ** 2)
