"""The interface of codecs: which parts stand for a tensor on the wire, and how to encode and decode it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

Form = dict[str, tuple[torch.dtype, tuple[int, ...]]]
"""Type and shape of each part that stands for a tensor, by the suffix of the part's name."""

Parts = Mapping[str, Tensor]
"""The parts of one tensor, by suffix; the part without a suffix is always there."""


class Codec(ABC):
    """Writes float32 tensors in fewer bytes; every other tensor, such as a sum in float64, travels unchanged.

    Decoding needs only the parts and what the site was sent, and does not validate them: the receiver compares them
    with `form` first.
    """

    @property
    def downwards(self) -> Codec:
        """Return the codec for what the server sends: it makes one part per tensor and needs nothing sent before."""
        return self

    @abstractmethod
    def form(self, like: Tensor) -> Form:
        """Return the type and shape of the parts that stand for a tensor such as `like`."""

    @abstractmethod
    def encode(self, tensor: Tensor, sent: Tensor) -> Parts:
        """Encode a tensor as parts; `sent` is the version of it that the site was sent."""

    @abstractmethod
    def decode(self, parts: Parts, sent: Tensor) -> Tensor:
        """Decode the tensor that the parts stand for."""

    def feeds_back(self, like: Tensor) -> bool:
        """Tell whether what encoding such a tensor loses is added to what the site sends in the next round."""
        return False
