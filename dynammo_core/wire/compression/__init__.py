"""The table of codecs that save bytes on the wire, and the functions that send whole messages through one."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from dynammo_core.wire.compression.base import Codec, Form
from dynammo_core.wire.compression.float16 import Float16
from dynammo_core.wire.compression.int8 import Int8, Int8Both
from dynammo_core.wire.compression.plain import Plain

CODECS: Mapping[str, Codec] = MappingProxyType(
    {"none": Plain(), "float16": Float16(), "int8": Int8(), "int8_both": Int8Both()}
)
"""Codecs by the value of `federation.compression`."""

Tensors = Mapping[str, Tensor]


def packed_form(codec: Codec, declared: Tensors) -> Form:
    """Return the type and shape of every tensor on the wire, by its name there, for the declared tensors."""
    return {f"{name}{part}": form for name, like in declared.items() for part, form in codec.form(like).items()}


def pack(codec: Codec, weights: Tensors, sent: Tensors) -> dict[str, Tensor]:
    """Encode tensors for the wire; `sent` holds what the site was sent, and zeros stand for what it was not sent."""
    return {
        f"{name}{part}": tensor
        for name, whole in weights.items()
        for part, tensor in codec.encode(
            whole, sent[name] if name in sent else whole.new_zeros(()).expand_as(whole)
        ).items()
    }


def unpack(codec: Codec, packed: Tensors, sent: Tensors) -> dict[str, Tensor]:
    """Decode the tensors that `pack` encoded."""
    parts, nothing = dict[str, dict[str, Tensor]](), torch.zeros(())
    for key, tensor in packed.items():
        name, colon, suffix = key.partition(":")
        parts.setdefault(name, {})[f"{colon}{suffix}"] = tensor
    return {name: codec.decode(encoded, sent.get(name, nothing)) for name, encoded in parts.items()}


def carried(codec: Codec, weights: Tensors) -> dict[str, Tensor]:
    """Return the tensors that arrive at a site if the server sends `weights`."""
    return unpack(codec.downwards, pack(codec.downwards, weights, {}), {})
