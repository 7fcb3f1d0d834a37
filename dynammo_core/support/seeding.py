"""Random seeds, all derived from the run's seed and a purpose, never from a clock or an order."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derive_seed(*parts: str | int) -> int:
    """Derive a 63-bit seed that depends on every part, such as (seed, "adapt", task, round, site)."""
    digest = hashlib.sha256("/".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def seeded_generator(*parts: str | int) -> torch.Generator:
    """Return a CPU generator seeded with `derive_seed(*parts)`."""
    return torch.Generator().manual_seed(derive_seed(*parts))


@contextmanager
def seeded_initialisation(*parts: str | int) -> Iterator[None]:
    """Seed the initial weights of modules built inside by `derive_seed(*parts)`, then restore the global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(*parts))
        yield
