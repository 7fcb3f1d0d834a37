"""The names of a network's tensors: which of them travel, which fit a pattern, and the levels between its parts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableMapping
from fnmatch import fnmatchcase
from typing import Any, Literal, Protocol

Level = Literal["images", "prefix", "features"]
"""How far an input has come: normalised images, the maps before the first adapter, or the features for the heads."""

Form = Literal["full", "low_rank", "depthwise"]
"""How the two convolutions of an adapter of width C are written: with 18 C^2 weights, with 2 C w + 18 w^2 by way of w
channels, or with 2 C^2 + 18 C."""

Kind = Literal["lora", "bottleneck"]

Pooling = Literal["mean", "spread", "grid"]
"""What is kept of each channel of a map: its mean over the pixels; its standard deviation as well; or that deviation
and the mean of each quarter, so that positions count, too (spatial pyramids, arXiv 1406.4729)."""


class Network(Protocol):
    """Anything whose tensors and modules have names, as those of a PyTorch module have."""

    def state_dict(self) -> Mapping[str, Any]:
        """Returns all tensors by name."""
        ...

    def named_modules(self, *, remove_duplicate: bool = ...) -> Iterable[tuple[str, Any]]:
        """Yields every module with its name."""
        ...


def travelling_names(model: Network) -> list[str]:
    """List the names of all tensors that may change in a run: everything except frozen backbones."""
    frozen = tuple(
        f"{name}." for name, module in model.named_modules(remove_duplicate=False) if getattr(module, "frozen", False)
    )
    return [name for name in model.state_dict() if not name.startswith(frozen) and "num_batches_tracked" not in name]


def matching(names: Iterable[str], patterns: Iterable[str]) -> list[str]:
    """List the names that fit a shell-style pattern, and none of those behind a `!`, in their given order."""
    every = tuple(patterns)
    wanted = [pattern for pattern in every if not pattern.startswith("!")]
    left_out = [pattern[1:] for pattern in every if pattern.startswith("!")]
    return [name for name in names if _fits(name, wanted) and not _fits(name, left_out)]


def under(tensors: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Return the tensors whose names begin with a prefix, by the rest of their names."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def remove(tensors: MutableMapping[str, Any], *prefixes: str) -> None:
    """Remove the tensors whose names begin with one of the prefixes."""
    for name in [name for name in tensors if name.startswith(prefixes)]:
        del tensors[name]


def _fits(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
