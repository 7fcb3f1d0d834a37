"""Linear classifiers whose rows know which class they stand for."""

from __future__ import annotations

import torch
from torch import Tensor, nn

OTHERS = -1
"""The row of a head that stands for every class the head does not name."""


class LinearHead(nn.Linear):
    """A linear layer from features [B, D] to one logit a row.

    Attributes:
        rows: global class index of each row, `OTHERS` for the row of all other classes.
    """

    def __init__(self, feature_dim: int, rows: tuple[int, ...]) -> None:
        super().__init__(feature_dim, len(rows))
        self.rows = rows

    def targets(self, labels: Tensor) -> Tensor:
        """Row of each global label, Tensor[B] int64; labels without a row of their own go to `OTHERS`.

        Raises:
            ValueError: a label has no row and the head has no `OTHERS`.
        """
        matches = labels.unsqueeze(1) == torch.tensor(self.rows, device=labels.device)
        rows = matches.int().argmax(dim=1)
        named = matches.any(dim=1)
        if OTHERS in self.rows:
            return torch.where(named, rows, self.rows.index(OTHERS))
        if not bool(named.all()):
            raise ValueError(f"label {int(labels[~named][0])} has no row in a head of the classes {self.rows}")
        return rows

    def extended(self, classes: tuple[int, ...]) -> LinearHead:
        """A head with rows for `classes` beneath this one's rows, whose values it keeps."""
        head = LinearHead(self.in_features, self.rows + classes)
        with torch.no_grad():
            head.weight[: len(self.rows)] = self.weight
            head.bias[: len(self.rows)] = self.bias
        return head


def head_rows(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Class of each row, for every tensor of `model` that belongs to a head, by its name in the state dict."""
    return {
        f"{name}.{tensor}": module.rows
        for name, module in model.named_modules()
        if isinstance(module, LinearHead)
        for tensor in ("weight", "bias")
    }
