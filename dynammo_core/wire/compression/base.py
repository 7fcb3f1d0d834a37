"""How a tensor is written on the wire: a codec says which parts stand for it, and turns the one into the other."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

Form = dict[str, tuple[torch.dtype, tuple[int, ...]]]
"""Type and shape of each part that stands for a tensor, by the suffix that the part's name has."""

Parts = Mapping[str, Tensor]
"""The parts of one tensor, by suffix; the part without a suffix is always there."""


class Codec(ABC):
    """Writes tensors of float32 in fewer bytes; every other tensor, such as a sum in float64, travels as it is.

    Decoding needs nothing but the parts and what the site was sent, and never looks at how honest they are: whoever
    receives them holds them against `form` before.
    """

    @property
    def downwards(self) -> Codec:
        """What the server sends is written by: it has one part a tensor, and needs nothing that was sent before."""
        return self

    @abstractmethod
    def form(self, like: Tensor) -> Form:
        """The parts that stand for a tensor such as `like`."""

    @abstractmethod
    def encode(self, tensor: Tensor, sent: Tensor) -> Parts:
        """The parts that stand for a tensor, of which the site was sent `sent`."""

    @abstractmethod
    def decode(self, parts: Parts, sent: Tensor) -> Tensor:
        """The tensor that the parts stand for."""

    def feeds_back(self, like: Tensor) -> bool:
        """Whether what encoding loses of such a tensor is added to what the site sends in the next round."""
        return False
