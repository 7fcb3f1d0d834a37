"""A cache in memory of what takes long to make, such as what a frozen part of the network makes of images."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from typing import Generic, Protocol, TypeVar

from torch import Tensor


class TakesMemory(Protocol):
    """Anything that knows how many bytes of memory it takes."""

    @property
    def nbytes(self) -> int:
        """Return the bytes."""
        ...


T = TypeVar("T", bound=TakesMemory)


class RecentlyUsed(Generic[T]):
    """Keeps what was used last, up to a budget of bytes."""

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._held: OrderedDict[Hashable, T] = OrderedDict()
        self._bytes = 0

    def get(self, key: Hashable, compute: Callable[[], T]) -> T:
        """Return the value of `key`, computed if it is not held; the caller must not modify it."""
        if key in self._held:
            self._held.move_to_end(key)
            return self._held[key]
        value = compute()
        self._held[key] = value
        self._bytes += value.nbytes
        while self._bytes > self._budget:
            self._bytes -= self._held.popitem(last=False)[1].nbytes
        return value


FeatureCache = RecentlyUsed[Tensor]
"""Features by what they were computed of: the same in every round and epoch."""


def fingerprint(weights: Mapping[str, Tensor]) -> str:
    """Return a hash of the names and the bits of all tensors: other weights make other features."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode() + b"\0")
        digest.update(weights[name].detach().cpu().contiguous().view(-1).numpy().tobytes())
    return digest.hexdigest()
