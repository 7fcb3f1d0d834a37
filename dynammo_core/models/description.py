"""What to know of a backbone before it is used: licence, size, places for adapters, and where its weights come from."""

from __future__ import annotations

import torch

from dynammo_core.configuration.settings import HUB, WEIGHTS_BY_NAME, BackboneSettings
from dynammo_core.models import BACKBONES
from dynammo_core.models.backbones import Backbone, BackboneSpec, build_backbone
from dynammo_core.models.pretrained import RANDOM, locate_weights
from dynammo_core.models.timm_networks.catalogue import TimmSpec, source_of


def licence_of(settings: BackboneSettings) -> str:
    """Return the licence of the weights that a run starts from, as far as it is known here."""
    if settings.weights == RANDOM:
        return "none, the weights were drawn at random"
    licence = BACKBONES[settings.name].licence
    named = settings.weights in WEIGHTS_BY_NAME
    return licence if named else f"that of the file; the weights that {settings.name} stands for: {licence}"


def title_of(settings: BackboneSettings) -> str:
    """Return the network's name, and the side at which it sees images if it has one of its own."""
    return settings.name if settings.image_size is None else f"{settings.name} at {settings.image_size} pixels"


def origin_of(settings: BackboneSettings) -> str:
    """Say who makes the weights that a run starts from, and where they come from; nothing is asked of the net."""
    if settings.weights == RANDOM:
        return "weights drawn at random"
    if settings.weights not in WEIGHTS_BY_NAME:
        return f"weights from the file {settings.weights}"
    pinned = f", SHA-256 {settings.sha256}" if settings.sha256 else ""
    if not settings.comes_from_the_net:
        return f"weights that this project names{pinned}"
    repository = settings.name.removeprefix(HUB)
    if not settings.name.startswith(HUB):
        repository = source_of(settings.name).repository or "timm"
    return f"weights downloaded from {repository} on the Hugging Face hub{pinned}"


def weights_sha256(settings: BackboneSettings) -> str:
    """Return the SHA-256 of what `build_backbone` would load, for sites to compare; `random` if no file.

    Raises:
        ConfigError, WeightsError: as `build_backbone`, except for tensors that do not fit.
    """
    spec = BACKBONES[settings.name]
    file = locate_weights(settings, spec.imagenet, spec.described)
    return RANDOM if file is None else file.sha256()


def native_size(name: str) -> int:
    """Return the side of the images that a network's weights were trained on, 224 pixels for this project's own."""
    spec = BACKBONES.find(name, "backbone.name")
    return spec.source.image_size if isinstance(spec, TimmSpec) else 224


def untrained(name: str, image_size: int | None) -> Backbone:
    """Return a backbone of shapes alone, which has no weights and answers nothing but shapes."""
    with torch.device("meta"):
        return build_backbone(BackboneSettings(name=name, weights=RANDOM), 0, image_size).eval()


def described(name: str, image_size: int | None = None) -> dict[str, str]:
    """Describe a backbone in rows of a name and a value; nothing is downloaded but a repository's `config.json`.

    Raises:
        ConfigError: the name is unknown, or its network takes no images of that size.
        WeightsError: the repository's configuration cannot be had from here.
    """
    spec = BACKBONES.find(name, "backbone.name")
    backbone = untrained(name, image_size)
    weights = sum(parameter.numel() for parameter in backbone.parameters())
    mean, deviation = (", ".join(f"{value:.4g}" for value in values) for values in spec.normalisation)
    rows = {
        "Parameters": f"{weights:,}",
        "Features": f"{backbone.feature_dim:,}",
        "Maps of stages": ", ".join(map(str, backbone.map_channels)) or "none; set method.multi_scale: false",
        **_places(spec),
        "Mean; deviation": f"{mean}; {deviation} (data.normalisation: backbone)",
        "Licence": spec.licence,
    }
    if not isinstance(spec, TimmSpec):
        return rows
    held = spec.source.held()
    return rows | {
        "Trained on": f"{spec.source.image_size} pixels a side",
        "Weights": f"{spec.source.repository} on the Hugging Face hub"
        if spec.source.repository
        else "none; use a file",
        "SHA-256": held.sha256() if held else "the file is not here yet; `dynammo-sim backbone fetch` tells it",
    }


def _places(spec: BackboneSpec) -> dict[str, str]:
    """Say where adapters go: before stages, or beside modules of a transformer's blocks."""
    if not spec.blocks:
        points = zip(spec.insertion_points, spec.channels, strict=True)
        obstacle = spec.obstacle if isinstance(spec, TimmSpec) else ""
        return {"Adapters before": ", ".join(f"{point} ({width} channels)" for point, width in points) or obstacle}
    first, last = spec.blocks[0], spec.blocks[-1]
    layers = ", ".join(f"{layer.name} ({layer.inputs} to {layer.outputs})" for layer in first.layers)
    return {
        "LoRA beside": f"{layers} of {len(spec.blocks)} blocks, {first.name} (these widths) to {last.name}",
        "Bottlenecks beside": f"the MLP of each of these blocks ({first.mlp.inputs} channels in the first)",
    }
