"""Codecs of one byte per weight: sites send differences to what they were sent, row by row, with error feedback."""

from __future__ import annotations

import torch
from torch import Tensor

from dynammo_core.wire.compression.base import Codec, Form, Parts
from dynammo_core.wire.compression.float16 import Float16

SCALE = ":scale"
LEVELS = 127
HALF = Float16()


class Int8(Codec):
    """Writes a site's changes of matrices and kernels in int8, one scale per row; vectors and the way down in float16.

    The scale of a row is its largest difference over 127, so no value is off by more than half a scale. What rounding
    loses is added to the next round's difference (error feedback: Karimireddy et al., arXiv 1901.09847, algorithm 2).
    Vectors are few, and some are variances, which may come out rounded but never below zero.
    """

    @property
    def downwards(self) -> Codec:
        return HALF

    def form(self, like: Tensor) -> Form:
        if not self.feeds_back(like):
            return HALF.form(like)
        return {"": (torch.int8, tuple(like.shape)), SCALE: (torch.float32, (like.shape[0],))}

    def encode(self, tensor: Tensor, sent: Tensor) -> Parts:
        if not self.feeds_back(tensor):
            return HALF.encode(tensor, sent)
        rows = (tensor - sent).flatten(1)
        scale = rows.abs().amax(dim=1) / LEVELS
        steps = (rows / scale.clamp(min=torch.finfo(torch.float32).tiny).unsqueeze(1)).round()
        return {"": steps.clamp(-LEVELS, LEVELS).to(torch.int8).reshape(tensor.shape), SCALE: scale}

    def decode(self, parts: Parts, sent: Tensor) -> Tensor:
        if SCALE not in parts:
            return HALF.decode(parts, sent)
        difference = parts[""].flatten(1) * parts[SCALE].unsqueeze(1)
        return sent + difference.reshape(parts[""].shape)

    def feeds_back(self, like: Tensor) -> bool:
        return like.dtype == torch.float32 and like.ndim > 1 and like.numel() > 0


class Int8Both(Int8):
    """Like `Int8`, and int8 to the sites too: kernels and matrices themselves, since a difference needs a reference.

    What arrives is written as the same bytes again: for a float32 x, 127 (x / 127) / 127 is x / 127 to the last bit.
    """

    @property
    def downwards(self) -> Codec:
        return self
