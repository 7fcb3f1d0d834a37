"""The network that a run trained as a file of weights, from which other experiments start."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import torch
from safetensors.torch import save
from torch import nn

from dynammo_core.deployed.model_files import ModelFiles
from dynammo_core.methods import METHODS
from dynammo_core.models import BACKBONES
from dynammo_core.support.errors import ConfigError
from dynammo_core.support.files import write_atomically

PLACE = "extractor.backbone."
"""Where a deployed model has the tensors of its one network."""


def write_backbone(run: Path, target: Path) -> str:
    """Write the network of a deployed model under the names that its uncut network has, and return its backbone's name.

    The classifier is left out: it belongs to the classes of that run.

    Args:
        run: a run directory, or another place of a deployed model.
        target: file to write, as safetensors.

    Raises:
        ConfigError: the run left its pretrained network as it was, or made several of it.
        WeightsError: the model cannot be read.
        CheckpointError: the file cannot be written.
    """
    files = ModelFiles.read(run)
    name, method = files.facts.backbone, str(files.facts.method["name"])
    if METHODS[method].freezes_backbone:
        raise ConfigError(
            f"{run}: {method} leaves its backbone as it was pretrained, so there is nothing new to take from it",
            accepted="a run of a method that trains the whole network, such as joint or fine_tune",
        )
    names = _uncut_names(name, files.facts.network_size or files.facts.image_size)
    tensors = {names[held]: tensor for held, tensor in files.tensors.items() if held in names}
    if not tensors:
        raise ConfigError(
            f"{run}: {method} has several networks, and an experiment starts from one", remedy="Use joint"
        )
    write_atomically(target, save(tensors))
    return name


def _uncut_names(backbone: str, image_size: int) -> dict[str, str]:
    """Return the names of a network's tensors before it is cut, by their names in a deployed model."""
    spec = BACKBONES[backbone]
    with torch.device("meta"):
        network = spec.assemble(None, image_size)
        cut = spec.cut(network)  # shares the tensors
    uncut = {id(tensor): name for name, tensor in _tensors(network)}
    return {f"{PLACE}{name}": uncut[id(tensor)] for name, tensor in _tensors(cut)}


def _tensors(network: nn.Module) -> list[tuple[str, torch.Tensor]]:
    return list(chain(network.named_parameters(), network.named_buffers()))
