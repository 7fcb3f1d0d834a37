"""What a site checks of the tensors that it received, before it computes anything with them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from dynammo_core.support.errors import ProtocolError

VARIANCE, COUNTS = "running_var", "counts"


def check_values(received: Mapping[str, Tensor]) -> None:
    """Refuse tensors that make an answer depend on one image in a way that no noise hides, or no sense at all.

    Args:
        received: by name, those of a teacher too.

    Raises:
        ProtocolError: a value is not finite, or a variance or a number of images is negative; it names the tensor.
    """
    for name, tensor in received.items():
        if not bool(torch.isfinite(tensor).all()):
            raise ProtocolError(f"the tensor {name!r} was received with a value that is not finite")
        if name.rpartition(".")[2] in (VARIANCE, COUNTS) and bool((tensor < 0).any()):
            raise ProtocolError(f"the tensor {name!r} was received with {float(tensor.min()):g}", accepted="0 or more")
