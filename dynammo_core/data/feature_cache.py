"""A cache in memory of what a frozen part of the network makes of images, the same in every round and epoch."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping

from torch import Tensor


class FeatureCache:
    """Keeps the tensors used last, up to a budget of bytes."""

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._held: OrderedDict[Hashable, Tensor] = OrderedDict()

    def get(self, key: Hashable, compute: Callable[[], Tensor]) -> Tensor:
        """Return the tensor of `key`, computed if it is not held; the caller must not modify it."""
        if key in self._held:
            self._held.move_to_end(key)
            return self._held[key]
        tensor = compute()
        self._held[key] = tensor
        while sum(held.nbytes for held in self._held.values()) > self._budget:
            self._held.popitem(last=False)
        return tensor


def fingerprint(weights: Mapping[str, Tensor]) -> str:
    """Return a hash of the names and the bits of all tensors: other weights make other features."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode() + b"\0")
        digest.update(weights[name].detach().cpu().contiguous().view(-1).numpy().tobytes())
    return digest.hexdigest()
