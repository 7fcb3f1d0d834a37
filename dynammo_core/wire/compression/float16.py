"""The codec of half precision in both directions: half the bytes, eleven bits of each value."""

from __future__ import annotations

import torch
from torch import Tensor

from dynammo_core.wire.compression.base import Codec, Form, Parts

LARGEST = float(torch.finfo(torch.float16).max)
"""The largest number that float16 can hold, 65504."""


class Float16(Codec):
    """Writes float32 values in float16.

    A value beyond 65504 becomes infinite, and is refused as every infinite one is.
    """

    def form(self, like: Tensor) -> Form:
        dtype = torch.float16 if like.dtype == torch.float32 else like.dtype
        return {"": (dtype, tuple(like.shape))}

    def encode(self, tensor: Tensor, sent: Tensor) -> Parts:
        return {"": tensor.half() if tensor.dtype == torch.float32 else tensor}

    def decode(self, parts: Parts, sent: Tensor) -> Tensor:
        return parts[""].float() if parts[""].dtype == torch.float16 else parts[""]
