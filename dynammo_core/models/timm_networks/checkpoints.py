"""Checkpoints of other programs: the weights of one network of timm taken out of them, as one strict file."""

from __future__ import annotations

import argparse
import io
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from dynammo_core.models.pretrained import FOREIGN, WeightsFile
from dynammo_core.models.timm_networks.catalogue import TIMM, TimmSpec, find
from dynammo_core.support.errors import ConfigError, WeightsError
from dynammo_core.support.files import write_atomically

DEEPEST = 4
"""Sections within sections that are searched."""
OTHER = "Name the architecture that it was saved from"


@dataclass(frozen=True)
class Found:
    """One network in a checkpoint.

    Attributes:
        place: what stands before the names of its tensors: keys of sections and prefixes, such as `teacher.backbone.`.
        tensors: its tensors, by the names in the network.
        left_out: how many tensors of the checkpoint are no part of it, by the beginning of their names.
    """

    place: str
    tensors: dict[str, Tensor]
    left_out: Counter[str]


def convert(checkpoint: Path, name: str, out: Path, place: str | None = None) -> Found:
    """Write the weights of a network that a checkpoint holds somewhere as safetensors, once the network loads them.

    Args:
        checkpoint: a file of torch.save or safetensors; of a pickle, tensors and plain values alone are read.
        name: of the network, `timm/NAME`.
        out: the file to write.
        place: what stands before the names of its tensors, if the checkpoint holds several such networks.

    Raises:
        ConfigError: there is no such network.
        WeightsError: the file cannot be read, or holds no such network, or several.
        CheckpointError: the file cannot be written.
    """
    if not name.startswith(TIMM):
        raise ConfigError(f"--name {name} is no network of timm", accepted="timm/NAME")
    if out.exists():
        raise ConfigError(f"--out {out} is already there", remedy="Name another file")
    spec = find(name)
    found = _choose(dict(_flat(_opened(checkpoint))), spec, checkpoint, place)
    write_atomically(out, save({key: tensor.contiguous() for key, tensor in found.tensors.items()}))
    try:
        spec.assemble(WeightsFile(out), None)
    except WeightsError as error:
        out.unlink()
        why = str(error).partition(": ")[2].partition("; `")[0].partition(". ")[0]
        raise WeightsError(f"{checkpoint} does not fit {name}: {why}", remedy=OTHER) from error
    return found


def _opened(path: Path) -> Any:
    content = WeightsFile(path).read()
    try:
        if path.suffix == ".safetensors":
            return load(content)
        with torch.serialization.safe_globals([argparse.Namespace]):  # a bag of values, as training scripts save
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # what decoders raise for damaged files has no common type
        if FOREIGN in str(error):
            raise WeightsError(
                f"{path} holds more than tensors and plain values, and opening that could execute what is in it",
                remedy="On a machine without patient data, load it with its own program and save network.state_dict()",
            ) from error
        raise WeightsError(f"{path} cannot be decoded ({type(error).__name__}, {len(content):,} bytes)") from error


def _flat(section: Any, before: str = "", depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    """Yield all tensors of sections within sections, with their keys joined by dots."""
    if isinstance(section, Mapping) and depth < DEEPEST:
        for key, value in section.items():
            if isinstance(value, Tensor):
                yield f"{before}{key}", value
            else:
                yield from _flat(value, f"{before}{key}.", depth + 1)


def _choose(held: Mapping[str, Tensor], spec: TimmSpec, path: Path, place: str | None) -> Found:
    """Return the one whole network of that kind, or the one at the given place."""
    with torch.device("meta"):
        network = spec.assemble(None, None)
    wanted = list(network.state_dict())
    anchor = max(wanted, key=len)  # a name that no other network has by chance
    places = [key.removesuffix(anchor) for key in held if key.endswith(anchor)]
    lacking = {one: [key for key in wanted if f"{one}{key}" not in held] for one in places}
    whole = [one for one in places if not lacking[one] and place in (None, one)]
    if len(whole) == 1:
        return _at(whole[0], held, network, spec)
    name = spec.source.name
    if whole:
        raise WeightsError(f"{path} holds {name} several times", accepted=f"--place {' or '.join(map(repr, whole))}")
    if place is not None:
        raise WeightsError(f"{path} holds no {name} at --place {place!r}", accepted=", ".join(map(repr, places)))
    first = f"its first tensors are {', '.join(list(held)[:3])}" if held else "it holds no tensors"
    absent = [f"it lacks {one}{gone[0]} ({len(gone)} such tensors)" for one, gone in lacking.items()]
    raise WeightsError(f"{path} holds no whole {name}: {[*absent, first][0]}", remedy=OTHER)


def _at(place: str, held: Mapping[str, Tensor], network: nn.Module, spec: TimmSpec) -> Found:
    """Take the network at a place; what else belongs to one of its parts comes along, and then does not fit."""
    own = {key.removeprefix(place): tensor for key, tensor in held.items() if key.startswith(place)}
    tensors = {
        key: tensor
        for key, tensor in spec.source.without_classifier(own).items()
        if hasattr(network, key.partition(".")[0])
    }
    others = held.keys() - {f"{place}{key}" for key in tensors}
    return Found(place, tensors, Counter(_beginning(key, place) for key in sorted(others)))


def _beginning(key: str, place: str) -> str:
    own = key.removeprefix(place)
    return f"{key[: len(key) - len(own)]}{own.partition('.')[0]}"
