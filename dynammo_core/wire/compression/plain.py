"""Tensors as they are."""

from __future__ import annotations

from torch import Tensor

from dynammo_core.wire.compression.base import Codec, Form, Parts


class Plain(Codec):
    """Every bit of every tensor."""

    def form(self, like: Tensor) -> Form:
        return {"": (like.dtype, tuple(like.shape))}

    def encode(self, tensor: Tensor, sent: Tensor) -> Parts:
        return {"": tensor}

    def decode(self, parts: Parts, sent: Tensor) -> Tensor:
        return parts[""]
