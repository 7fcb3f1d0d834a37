"""Classifiers whose rows know which class they stand for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

OTHERS = -1
"""The row of a head that stands for every class the head does not name."""

LONGEST_MEAN = 1.25
"""Longest mean of unit features, with a margin for rounding to eight bits per number."""


class Head(nn.Module):
    """Turns features Tensor[B, D] into one logit for each of R rows, Tensor[B, R].

    Attributes:
        rows: global class index of each row, `OTHERS` for the row of all other classes.
        row_tensors: names of the parameters and buffers whose first dimension runs over the rows.
        summed_tensors: names of the buffers that the server adds up over sites, and never averages.
        weight: Tensor[R * K, D], K vectors per row.
    """

    rows: tuple[int, ...]
    row_tensors: tuple[str, ...] = ("weight",)
    summed_tensors: tuple[str, ...] = ()
    weight: Tensor

    def obstacle(
        self,
        tensors: Mapping[str, Tensor],
        class_counts: Sequence[int],
        *,
        noised: bool = False,
        own: bool = False,
        rounding: float = 0.0,
    ) -> str:
        """Say why a site's tensors of this head are impossible, so that they are refused; empty if they are possible.

        Args:
            tensors: the tensors by their names in this head, of the right shapes and types, finite.
            class_counts: [C] samples of each class that they speak for.
            noised: whether noise hides single images in them.
            own: whether the caller made them, so that checks that take long may be left out.
            rounding: how far each number may be off, beyond the rounding of its type.
        """
        return ""

    def travelling_shapes(self, class_counts: Sequence[int], rows: int | None = None) -> dict[str, tuple[int, ...]]:
        """Return the shapes of tensors, by their names in this head, that travel in a shape of their own.

        Args:
            class_counts: [C] samples of each class that the tensors speak for.
            rows: most rows that a factor may have; None for all.
        """
        return {}

    def whole(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return tensors as this head keeps them, from tensors as they travelled, by their names in this head."""
        return dict(tensors)

    def obstacle_to_rest(self, taken: Mapping[str, Tensor]) -> str:
        """Say why the sums in this head are impossible after others were subtracted; empty if they are possible.

        Args:
            taken: the sums that were subtracted, by their names in this head.
        """
        return ""

    def targets(self, labels: Tensor) -> Tensor:
        """Return the row of each global label, Tensor[B] int64; labels without a row of their own go to `OTHERS`.

        Raises:
            ValueError: a label has no row and the head has no `OTHERS`.
        """
        matches = labels.unsqueeze(1) == torch.tensor(self.rows, device=labels.device)
        rows = matches.int().argmax(dim=1)
        named = matches.any(dim=1)
        if OTHERS in self.rows:
            return torch.where(named, rows, self.rows.index(OTHERS))
        if not bool(named.all()):
            raise ValueError(f"label {int(labels[~named][0])} has no row in a head with the classes {self.rows}")
        return rows

    def extended(self, classes: tuple[int, ...], features: int = 0) -> Self:
        """Return a new head with rows for `classes` below this head's and columns for `features` more features.

        What this head has learnt keeps its place; everything added is initialised as in a new head.
        """
        head = self._like(self.weight.shape[1] + features, self.rows + classes)
        with torch.no_grad():
            for name, tensor in self.state_dict().items():
                head.get_parameter(name)[tuple(slice(size) for size in tensor.shape)] = tensor
        return head

    def _like(self, feature_dim: int, rows: tuple[int, ...]) -> Self:
        """Return a new head of the same kind."""
        raise NotImplementedError(f"{type(self).__name__} cannot be extended")


class LinearHead(nn.Linear, Head):
    """A linear layer: one weight vector and one bias per row."""

    row_tensors = ("weight", "bias")

    def __init__(self, feature_dim: int, rows: tuple[int, ...]) -> None:
        super().__init__(feature_dim, len(rows))
        self.rows = rows

    def _like(self, feature_dim: int, rows: tuple[int, ...]) -> Self:
        return type(self)(feature_dim, rows)


class CosineHead(Head):
    """Cosine similarity to K proxies per class, times a learnable scale.

    K = 1 is LUCIR's head (Hou et al., CVPR 2019, equation 4), K > 1 PODNet's local similarity classifier
    (arXiv 2004.13513, equations 7 and 8): a class's similarity is the mean over its proxies, weighted by the softmax
    of their similarities.

    Args:
        feature_dim: width D of the features.
        rows: class of each row.
        proxies: K, proxies per class.
        scale: start value of the learnable scale.
    """

    def __init__(self, feature_dim: int, rows: tuple[int, ...], *, proxies: int = 1, scale: float = 1.0) -> None:
        super().__init__()
        self.rows = rows
        self.proxies = proxies
        self.weight = nn.Parameter(torch.empty(len(rows) * proxies, feature_dim))
        self.scale = nn.Parameter(torch.tensor(float(scale)))
        nn.init.kaiming_normal_(self.weight, nonlinearity="linear")

    def similarities(self, features: Tensor, fixed: int = 0) -> Tensor:
        """Return cosines in [-1, 1], Tensor[B, R]; no gradient reaches the vectors of the first `fixed` rows."""
        still, moving = self.weight.tensor_split([fixed * self.proxies])
        vectors = torch.cat([still.detach(), moving])
        cosines = F.linear(F.normalize(features, dim=1), F.normalize(vectors, dim=1))
        if self.proxies == 1:
            return cosines
        by_class = torch.unflatten(cosines, 1, (len(self.rows), self.proxies))
        return (by_class.softmax(dim=2) * by_class).sum(dim=2)

    def forward(self, features: Tensor) -> Tensor:
        """Return the scaled similarities, Tensor[B, R]."""
        return self.scale * self.similarities(features)

    def _like(self, feature_dim: int, rows: tuple[int, ...]) -> Self:
        return type(self)(feature_dim, rows, proxies=self.proxies)


class NearestMeanHead(Head):
    """Minus the squared distance to each class's mean of unit features (iCaRL, arXiv 1611.07725, equation 2).

    Means are computed, never trained: `weight` is a buffer, Tensor[R, D], of means that need not have unit length.
    """

    def __init__(self, feature_dim: int, rows: tuple[int, ...]) -> None:
        super().__init__()
        self.rows = rows
        self.register_buffer("weight", torch.zeros(len(rows), feature_dim))

    def obstacle(
        self,
        tensors: Mapping[str, Tensor],
        class_counts: Sequence[int],
        *,
        noised: bool = False,
        own: bool = False,
        rounding: float = 0.0,
    ) -> str:
        """Say that a mean of unit features is longer than 1; empty if none is."""
        longest = float(tensors["weight"].norm(dim=1).max())
        return f"a mean of unit features has the length {longest:.3g}" if longest > LONGEST_MEAN + rounding else ""

    def forward(self, features: Tensor) -> Tensor:
        """Return logits Tensor[B, R], with features and means scaled to unit length.

        A class that nobody holds an exemplar of, its mean all zeros, is as far away as unit vectors can be.
        """
        distances = torch.cdist(F.normalize(features, dim=1), F.normalize(self.weight, dim=1)).square()
        return -distances.masked_fill(~self.weight.any(dim=1), 4.0)


def head_rows(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the class of each row of every head's tensor, by the tensor's name in the model's state dict."""
    return {
        f"{name}.{tensor}": tuple(row for row in head.rows for _ in range(_vectors(head, tensor)))
        for name, head in model.named_modules()
        if isinstance(head, Head)
        for tensor in head.row_tensors
    }


def summed_names(model: nn.Module) -> set[str]:
    """Return the names in the state dict of all tensors that are added up over sites."""
    return {
        f"{name}.{tensor}"
        for name, head in model.named_modules()
        if isinstance(head, Head)
        for tensor in head.summed_tensors
    }


def _vectors(head: Head, tensor: str) -> int:
    """Return how many entries of a row-wise tensor belong to one row."""
    return int(head.state_dict()[tensor].shape[0]) // len(head.rows)
