"""Where a network can be cut for adapters: one forward pass shows whether modules alone carry the maps along."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from dynammo_core.models.backbones import Backbone

STAGES = 4
"""At most this many stages have an adapter before them, as in DynaMMo's ResNet-18 (arXiv 2404.14099)."""


class CannotBeCut(Exception):  # noqa: N818  # caught where it is raised, and told as a reason
    """Says why no adapter can be put between the stages of a network."""


@dataclass(frozen=True)
class Cut:
    """A network as a chain of modules.

    Attributes:
        sections: names of the modules of the prefix and of each stage, in the order of the forward pass.
        channels: channels of the maps that enter each stage.
    """

    sections: tuple[tuple[str, ...], ...]
    channels: tuple[int, ...]

    @property
    def insertion_points(self) -> tuple[str, ...]:
        """Return the names of the modules that have an adapter before them."""
        return tuple(section[0] for section in self.sections[1:])

    def apply(self, network: nn.Module, feature_dim: int) -> Backbone:
        """Return the backbone made of the modules of the uncut `network`, which it shares."""
        prefix, *stages = (
            nn.Sequential(OrderedDict((name.replace(".", "_"), network.get_submodule(name)) for name in section))
            for section in self.sections
        )
        used = {name.partition(".")[0] for section in self.sections for name in section}
        return Backbone(prefix, stages, self.channels, feature_dim, HeadPreparation(network, used))


class HeadPreparation(nn.Module):
    """What a network does between its last maps and its classifier: norms, pooling, layers of the head.

    Args:
        network: the uncut network, whose `forward_head` says what that is.
        used: its children that the cut holds already, and this module leaves out.
    """

    rest: Any  # a module with the methods that all of timm's networks have

    def __init__(self, network: nn.Module, used: Collection[str]) -> None:
        super().__init__()
        self.rest = copy.copy(network)  # shares all tensors; only the table of children becomes another
        self.rest._modules = {name: child for name, child in network._modules.items() if name not in used}

    def forward(self, maps: Tensor) -> Tensor:
        """Return features Tensor[B, D] of the last maps."""
        features: Tensor = self.rest.forward_head(maps, pre_logits=True)
        return features


@dataclass(frozen=True)
class _Call:
    """One module's part in a forward pass."""

    name: str
    inputs: tuple[Any, ...]
    output: Any


@torch.no_grad()
def find_cut(network: nn.Module, image: Tensor) -> Cut:
    """Find the last stages of a network of timm, of which `feature_info` names the ends.

    An adapter goes before the first module with weights of each stage, so that maps have been pooled where a network
    pools them. What follows the last stage up to the head belongs to it.

    Args:
        network: an uncut network in evaluation mode.
        image: one image Tensor[1, 3, S, S] that it takes, which may be on the device meta.

    Raises:
        CannotBeCut: something else than a chain of modules on maps Tensor[B, C, H, W] leads to the features.
    """
    ends = [str(info["module"]) for info in getattr(network, "feature_info", [])[-STAGES - 1 :]]
    chain = _chain(network, image, list(_steps(network, ends)))
    names = [call.name for call in chain]
    if lacking := [end for end in ends if end not in names]:
        raise CannotBeCut(f"its stage {lacking[0]!r} is no step of its own in the forward pass")
    starts = list(_starts(network, names, ends))
    if not starts:
        raise CannotBeCut("it does not say where its stages are")
    for start in starts:
        entering = chain[start].inputs[0]
        if entering.ndim != 4 or entering.shape[2] != entering.shape[3]:  # a square image has square maps
            raise CannotBeCut(
                f"a tensor of shape {tuple(entering.shape)} enters {names[start]!r}, and convolutions need [B, C, H, W]"
            )
    bounds = [0, *starts, len(names)]
    sections = tuple(tuple(names[begin:end]) for begin, end in pairwise(bounds))
    return Cut(sections, tuple(chain[start].inputs[0].shape[1] for start in starts))


def _steps(network: nn.Module, ends: Collection[str], path: str = "") -> Iterator[str]:
    """Yield the names of the children of a network; of those with the end of a stage inside, the children's."""
    for child, module in network.named_children():
        name = f"{path}{child}"
        if any(end.startswith(f"{name}.") for end in ends):
            yield from _steps(module, ends, f"{name}.")
        else:
            yield name


def _chain(network: Any, image: Tensor, names: Sequence[str]) -> list[_Call]:
    """Run the network up to its head, and return the calls of the named modules if each takes what the last returned.

    Raises:
        CannotBeCut: something else happens between two of them, or one of them runs twice.
    """
    calls: list[_Call] = []

    def note(name: str, _: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> None:
        calls.append(_Call(name, (*inputs, *keywords.values()), output))

    with ExitStack() as hooks:
        for name in names:
            module = network.get_submodule(name)
            hooks.callback(module.register_forward_hook(partial(note, name), with_kwargs=True).remove)
        last = network.forward_features(image)
    given, before = image, "the image"
    for call in calls:
        if len(call.inputs) != 1 or call.inputs[0] is not given or not isinstance(call.output, Tensor):
            raise CannotBeCut(f"between {before} and {call.name!r} it computes what is no module")
        given, before = call.output, repr(call.name)
    if last is not given:
        raise CannotBeCut(f"between {before} and the head it computes what is no module")
    if len({call.name for call in calls}) < len(calls):
        raise CannotBeCut("it runs one of its modules twice")
    return calls


def _starts(network: nn.Module, names: Sequence[str], ends: Sequence[str]) -> Iterator[int]:
    """Yield where each stage begins: its first module with weights, the first stage's beside its own end."""
    if len(ends) <= STAGES and ends and names.index(ends[0]) > 0:
        yield names.index(ends[0])  # nothing tells the stem's end: the first stage is its own module
    for before, end in pairwise(ends):
        for place in range(names.index(before) + 1, names.index(end) + 1):
            of_stem = before == ends[0] and names[place].partition(".")[0] != end.partition(".")[0]
            if not of_stem and next(network.get_submodule(names[place]).parameters(), None) is not None:
                yield place
                break
