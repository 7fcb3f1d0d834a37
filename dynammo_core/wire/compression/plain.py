"""The codec that leaves tensors as they are."""

from __future__ import annotations

from torch import Tensor

from dynammo_core.wire.compression.base import Codec, Form, Parts


class Plain(Codec):
    """Writes every tensor unchanged."""

    def form(self, like: Tensor) -> Form:
        return {"": (like.dtype, tuple(like.shape))}

    def encode(self, tensor: Tensor, sent: Tensor) -> Parts:
        return {"": tensor}

    def decode(self, parts: Parts, sent: Tensor) -> Tensor:
        return parts[""]
