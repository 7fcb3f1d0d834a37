"""The cache of frozen features: computed once, dropped oldest first, and never mixed up between weights."""

from __future__ import annotations

import torch
from torch import Tensor

from dynammo_core.data.feature_cache import FeatureCache, fingerprint

BYTES = 40  # of ten float32


def held(cache: FeatureCache, *keys: str) -> list[str]:
    """The keys that had to be computed."""
    computed: list[str] = []

    def compute(key: str) -> Tensor:
        computed.append(key)
        return torch.full((10,), float(ord(key)))

    for key in keys:
        assert cache.get(key, lambda key=key: compute(key))[0] == ord(key)
    return computed


def test_a_held_tensor_is_not_computed_again() -> None:
    assert held(FeatureCache(budget=3 * BYTES), "a", "b", "a", "b", "c") == ["a", "b", "c"]


def test_the_one_unused_for_longest_goes_first() -> None:
    # Room for two: c drops b, since a was used after it; then b drops a.
    assert held(FeatureCache(budget=2 * BYTES), "a", "b", "a", "c", "a", "b") == ["a", "b", "c", "b"]


def test_what_is_larger_than_the_budget_is_computed_and_not_kept() -> None:
    assert held(FeatureCache(budget=BYTES - 1), "a", "a") == ["a", "a"]


def test_the_fingerprint_depends_on_every_name_and_bit_and_not_on_order_or_layout() -> None:
    weights = {"a": torch.arange(24.0).view(1, 2, 3, 4), "b": torch.zeros(2)}
    assert fingerprint(weights) == fingerprint(dict(reversed(weights.items())))
    assert fingerprint(weights) == fingerprint({**weights, "a": weights["a"].to(memory_format=torch.channels_last)})
    assert fingerprint(weights) != fingerprint({**weights, "b": torch.tensor([0.0, 1e-45])})
    assert fingerprint(weights) != fingerprint({"a": weights["a"], "c": weights["b"]})
