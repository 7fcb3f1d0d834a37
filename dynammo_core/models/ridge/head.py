"""Ridge regression from sums alone: the classifier that pooled data would give, however sites share the data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from dynammo_core.models.heads import OTHERS, Head
from dynammo_core.models.ridge.checks import MOST_NOISED_WEIGHT, obstacle_to_sums, obstacle_to_thin_sums
from dynammo_core.models.ridge.gram import pack, thin_factor, travelling_shape, triangle_of, unpack, upper
from dynammo_core.models.ridge.solution import Regulariser, Solution, ridge_solution, shrunken_discriminant
from dynammo_core.support.errors import ProtocolError

GRAM_SHARE = 0.1
"""The Gram matrix's share of the privacy that sums cost; the rows of classes take the rest."""

LEAST_WEIGHT, MOST_WEIGHT = 1e-9, 1e9
"""Least and largest weight of a class's samples: n / (C n_c), for fewer than a billion images."""


class RidgeHead(Head):
    """A linear classifier in closed form, and the sums that it is solved from.

    With features x augmented by a 1, one-hot labels y and weights w of samples, the sums are

    - `gram`: sum of w x x^T over samples, its upper triangle in a row, Tensor[P], P = (D + 1)(D + 2) / 2, float64; it
      may travel as a thin factor, Tensor[K, D];
    - `products`: sum of w y x^T, Tensor[R, D + 1], float64; the last column is the (weighted) number of samples.

    Both are plain sums over samples: what sites send adds up, and what a record or a site brought can be subtracted.

    Attributes:
        sample_weight: w of each row's class, Tensor[R].
    """

    row_tensors = ("weight", "bias", "sample_weight")
    summed_tensors = ("gram", "products", "counts")

    def __init__(self, feature_dim: int, rows: tuple[int, ...]) -> None:
        super().__init__()
        self.rows = rows
        size = feature_dim + 1
        self.register_buffer("weight", torch.zeros(len(rows), feature_dim))
        self.register_buffer("bias", torch.zeros(len(rows)))
        self.register_buffer("sample_weight", torch.ones(len(rows), dtype=torch.float64))
        self.register_buffer("counts", torch.zeros(len(rows), dtype=torch.float64))
        # NumPy leaves zeros to the system, which makes them when they are touched: most models touch none.
        self.register_buffer("gram", torch.from_numpy(np.zeros(size * (size + 1) // 2)))
        self.register_buffer("products", torch.zeros(len(rows), size, dtype=torch.float64))
        self.bias: Tensor
        self.sample_weight: Tensor
        self.counts: Tensor
        self.gram: Tensor
        self.products: Tensor

    def forward(self, features: Tensor) -> Tensor:
        """Return the regressed one-hot labels, Tensor[B, R]."""
        return torch.nn.functional.linear(features, self.weight, self.bias)

    def travelling_shapes(self, class_counts: Sequence[int], rows: int | None = None) -> dict[str, tuple[int, ...]]:
        """Return the shape in which the Gram matrix of samples of so many of each class travels."""
        return {"gram": travelling_shape(self._counted(class_counts), self.weight.shape[1], rows)}

    def whole(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return sums with the Gram matrix in place of its thin factor, if that came."""
        if "gram" not in tensors or tensors["gram"].ndim < 2:
            return {**tensors}
        gram = triangle_of(tensors["gram"].double(), tensors["products"], tensors["counts"])
        return {**tensors, "gram": gram}

    def obstacle(
        self,
        tensors: Mapping[str, Tensor],
        class_counts: Sequence[int],
        *,
        noised: bool = False,
        own: bool = False,
        rounding: float = 0.0,
    ) -> str:
        """Say why no samples have these sums, as `obstacle_to_sums` does; empty if some samples have them."""
        counts = torch.tensor(self._counted(class_counts), dtype=torch.float64)
        if not torch.equal(tensors["counts"], counts):
            return "'counts' differ from 'class_counts'"
        return self._obstacle(tensors, noised=noised, own=own, rounding=rounding) if "gram" in tensors else ""

    def obstacle_to_rest(self, taken: Mapping[str, Tensor]) -> str:
        """Say why no samples have the sums in this head; empty if some samples have them."""
        if self.counts.min() < 0:
            return "a class is left with a negative number of samples"
        remaining = {name: self.get_buffer(name).cpu() for name in self.summed_tensors}
        before = upper(remaining["gram"] + taken["gram"], self.weight.shape[1] + 1).diagonal()
        return self._obstacle(remaining, before=before)

    def _counted(self, class_counts: Sequence[int]) -> list[int]:
        """Return the number of samples of each row; those of `OTHERS` are of all classes without a row."""
        unnamed = sum(count for label, count in enumerate(class_counts) if label not in self.rows)
        return [unnamed if row == OTHERS else class_counts[row] for row in self.rows]

    def _obstacle(
        self,
        tensors: Mapping[str, Tensor],
        *,
        noised: bool = False,
        own: bool = False,
        rounding: float = 0.0,
        before: Tensor | None = None,
    ) -> str:
        products, weights = tensors["products"], self.sample_weight.cpu()
        counted = (weights, weights * tensors["counts"])
        if tensors["gram"].ndim == 2:
            return obstacle_to_thin_sums(tensors["gram"].double(), products, *counted)
        gram, slow = upper(tensors["gram"], products.shape[1]), not (noised or own)
        return obstacle_to_sums(
            gram, products, *counted, indefinite=slow, noised=noised, rounding=rounding, before=before
        )

    def add(self, features: Tensor, labels: Tensor, weights: Tensor | None = None) -> None:
        """Add a batch, Tensor[B, D] with global labels Tensor[B], to the sums, each sample `weights` times, Tensor[B].

        By default each is added once; a weight of -1 subtracts it again.
        """
        self.add_all([(features, labels, weights)])

    @torch.no_grad()
    def add_all(self, batches: Iterable[tuple[Tensor, Tensor, Tensor | None]]) -> None:
        """Add batches as `add` does, with one pass over the Gram matrix for all of them."""
        gram = None
        for features, labels, weights in batches:
            squares = torch.mm(*self._enter(features, labels, weights))
            gram = squares if gram is None else gram.add_(squares)
        if gram is not None:
            self.gram += pack(gram)

    def _enter(self, features: Tensor, labels: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
        """Add a batch to all sums but the Gram matrix; return its (x, 1) as columns, and as weighted rows."""
        rows = self.targets(labels)
        augmented = torch.cat([features.double(), features.new_ones(len(features), 1).double()], dim=1)
        times = torch.ones_like(rows, dtype=torch.float64) if weights is None else weights.to(self.sample_weight)
        weighted = (times * self.sample_weight[rows]).unsqueeze(1) * augmented
        self.products.index_add_(0, rows, weighted)
        self.counts.index_add_(0, rows, times)
        return augmented.T, weighted

    @torch.no_grad()
    def add_thinly(self, batches: Iterable[tuple[Tensor, Tensor]]) -> Tensor | None:
        """Add batches of features and global labels, and return the thin factor of their Gram matrix, Tensor[K, D].

        The Gram matrix itself is added, and nothing returned, where it is no longer than its factor would be.
        """
        kept, images, coming = list[tuple[Tensor, Tensor, None]](), 0, iter(batches)
        for features, labels in coming:
            kept.append((features, labels, None))
            images += len(labels)
            if (images - len(self.rows)) * features.shape[1] >= len(self.gram):
                break
        rows = self.targets(torch.cat([labels for _, labels, _ in kept])) if kept else torch.empty(0, dtype=torch.int64)
        shape = travelling_shape(torch.bincount(rows).tolist(), self.weight.shape[1])
        if not kept or len(shape) == 1:
            self.add_all(chain(kept, ((features, labels, None) for features, labels in coming)))
            return None
        for batch in kept:
            self._enter(*batch)
        return thin_factor(torch.cat([part for part, _, _ in kept]).double(), rows, self.sample_weight[rows], shape[0])

    def check_weights(self, most: float) -> None:
        """Refuse weights of samples that are not finite, not positive, or above `most`.

        Raises:
            ProtocolError: a weight is out of range; the message names both.
        """
        fitting = (self.sample_weight >= LEAST_WEIGHT) & (self.sample_weight <= most)  # NaN is neither
        if not bool(fitting.all()):
            invalid = float(self.sample_weight[~fitting][0])
            words = f"the sums give the samples of a class the weight {invalid:g}"
            raise ProtocolError(words, accepted=f"{LEAST_WEIGHT:g} to {most:g}")

    @torch.no_grad()
    def blur(self, counts: Mapping[int, int], bound: float, noise: Callable[[tuple[int, ...], float], Tensor]) -> None:
        """Add noise to the sums that hides one image more or less, with features no longer than `bound`.

        Images whose weights add up to 1 are hidden as one. With |x| <= B and weights of at most W =
        `MOST_NOISED_WEIGHT`, one image changes the triangle of w x x^T by w (sum over i <= j of x_i^2 x_j^2)^(1/2) = w
        ((|x|^4 + sum of x_i^4) / 2)^(1/2) <= W B^2, and its row, w x, by W B. The squares of the changes over the
        deviations add up: the triangle gets noise for 10^(1/2) times that, the rows, which say more, for (10 / 9)^(1/2)
        times, so that 1/10 + 9/10 make one Gaussian mechanism of the given multiplier. All else in the sums is made of
        `counts` and of noised rows, and costs nothing.

        Args:
            counts: noised number of images of each class that may occur; rows of other classes are zeros, and get no
                noise.
            bound: B, which features were shortened to.
            noise: draws noise from the shape of a sum and the most that one image changes it by.

        Raises:
            ProtocolError: a class weighs more than the noise is made for.
        """
        self.check_weights(MOST_NOISED_WEIGHT)
        size, most = self.weight.shape[1], MOST_NOISED_WEIGHT
        gram = unpack(self.gram, size + 1)
        triangle = pack(gram[:-1, :-1])
        triangle += noise(tuple(triangle.shape), math.sqrt(1 / GRAM_SHARE) * most * bound**2).to(triangle.device)
        touched = [index for index, row in enumerate(self.rows) if row in counts]
        rows = self.products[:, :-1]
        rows[touched] += noise((len(touched), size), math.sqrt(1 / (1 - GRAM_SHARE)) * most * bound).to(rows.device)
        self.counts.copy_(torch.tensor([counts.get(row, 0) for row in self.rows]))
        weighted = self.sample_weight * self.counts
        self.products[:, -1] = weighted
        gram[:-1, :-1] = unpack(triangle, size)
        gram[:-1, -1] = gram[-1, :-1] = rows.sum(dim=0)
        gram[-1, -1] = weighted.sum()
        self.gram.copy_(pack(gram))

    def clear_absent(self) -> None:
        """Set the products of classes without samples to 0, if subtracting left a rounding error in them."""
        self.products[self.counts == 0] = 0
        if not self.counts.any():
            self.gram.zero_()

    def deviations(self) -> Tensor:
        """Return the features' standard deviations in the sums, which hold a sample, Tensor[D]."""
        squares = upper(self.gram, self.weight.shape[1] + 1)
        mean = squares[:-1, -1] / squares[-1, -1]
        return (squares.diagonal()[:-1] / squares[-1, -1] - mean.square()).clamp_min(0).sqrt()

    @torch.no_grad()
    def solve(
        self, regulariser: Regulariser = None, shares: Tensor | None = None, towards: Tensor | None = None
    ) -> float:
        """Set weight and bias to the ridge solution of the sums, and return the regulariser used (`ridge_solution`)."""
        return self._answer_by(
            ridge_solution(self.gram, self.products, self.counts, self.sample_weight, regulariser, shares, towards)
        )

    @torch.no_grad()
    def solve_noised(self, regulariser: float | None = None) -> float:
        """Set weight and bias from sums that `blur` noised, by `shrunken_discriminant`; return the regulariser used."""
        return self._answer_by(shrunken_discriminant(self.gram, self.products, regulariser))

    def _answer_by(self, solution: Solution) -> float:
        self.weight.copy_(solution.weight)
        self.bias.copy_(solution.bias)
        return solution.regulariser
