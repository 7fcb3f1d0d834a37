"""The names `timm/NAME[.TAG]` and `hf_hub:OWNER/NAME`: which there are, and the backbone that each stands for."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch
from torch import nn

from dynammo_core.configuration.settings import HUB
from dynammo_core.models.backbones import Backbone, BackboneSpec
from dynammo_core.models.pretrained import WeightsFile
from dynammo_core.models.timm_networks.cuts import CannotBeCut, Cut, find_cut
from dynammo_core.models.timm_networks.repository import read_description
from dynammo_core.models.timm_networks.sources import Source
from dynammo_core.models.timm_networks.uncut import UncutBackbone
from dynammo_core.models.transformers.blocks import find_blocks
from dynammo_core.support.errors import ConfigError, unknown_name

TIMM = "timm/"
PACKAGE = "timm"
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/\w[\w.-]{0,95}(@\w[\w.-]{0,95})?", re.ASCII)
MAPS = 4
"""A transformer, whose blocks are all alike, gives its maps after each quarter of them."""


@dataclass(frozen=True, kw_only=True)
class TimmSpec(BackboneSpec):
    """A network of timm, and how it is cut.

    Attributes:
        source: what the name stands for.
        cut_at: where it is cut; None if it runs as a whole.
        obstacle: why it cannot be cut.
        maps: indices and channels of the maps that it gives as a whole.
    """

    source: Source
    cut_at: Cut | None
    obstacle: str
    maps: dict[int, int] = field(default_factory=dict)

    def assemble(self, file: WeightsFile | None, image_size: int | None) -> nn.Module:
        """Build the uncut network for images of a side, or of that of the weights; raises as `Source.create`."""
        return self.source.create(image_size or self.source.image_size, file)

    def cut(self, network: nn.Module) -> Backbone:
        """Return the backbone made of the modules of the uncut `network`, which it shares."""
        if self.cut_at is None:
            return UncutBackbone(network, self.maps, self.feature_dim, self.obstacle, self.blocks)
        return self.cut_at.apply(network, self.feature_dim)


def problem(name: str) -> str:
    """Say why a name cannot be used, and what is accepted; return an empty string if it can be."""
    try:
        import timm
    except ImportError:
        return f"the backbone {name!r} needs the package timm, which is not installed here; run: pip install timm"
    if name.startswith(HUB):
        fits = REPOSITORY.fullmatch(name.removeprefix(HUB))
        return "" if fits else f"{name!r} names no repository; accepted: {HUB}OWNER/NAME or {HUB}OWNER/NAME@REVISION"
    architecture, _, tag = name.removeprefix(TIMM).partition(".")
    if not timm.is_model(architecture):
        known = unknown_name("network of timm", architecture, timm.list_models(), most=3)
        return f"{known}; timm {timm.__version__} is installed here, and a newer one may have it"
    tags = _tags(architecture)
    if tag and tag not in tags:
        return f"{unknown_name('tag', tag, tags)} of {architecture}; accepted: {', '.join(tags)}"
    return ""


@cache
def find(name: str) -> TimmSpec:
    """Return the backbone that a name stands for, which costs no more than its shapes.

    Raises:
        ConfigError: there is no such network, or it has no features to take.
        WeightsError: the repository's configuration cannot be had from here.
    """
    if words := problem(name):
        raise ConfigError(f"backbone.name: {words}")
    source = source_of(name)
    with torch.device("meta"), torch.no_grad():
        network: Any = source.create(source.image_size).eval()
        if not hasattr(network, "forward_head"):
            raise ConfigError(f"backbone.name: {name} does not tell its features from its answers")
        image = torch.empty(1, 3, source.image_size, source.image_size)
        try:
            features = network.forward_head(network.forward_features(image), pre_logits=True)
        except Exception as error:  # encoders of language models have neither classes nor shapes that are fixed
            told = f"backbone.name: {name} gives no features for classes ({type(error).__name__}: {error})"
            raise ConfigError(
                told, remedy="Choose an image classifier of timm; `dynammo-sim backbone show` tells"
            ) from error
        if features.ndim != 2:
            raise ConfigError(f"backbone.name: {name} pools its maps to no vector of features")
        spec = TimmSpec(
            build=lambda: source.create(source.image_size),
            insertion_points=(),
            channels=(),
            feature_dim=features.shape[1],
            dropped=(),
            imagenet=source.weights,
            normalisation=source.normalisation,
            licence=source.licence,
            described=source.described,
            source=source,
            cut_at=None,
            obstacle="",
        )
        try:
            cut = find_cut(network, image)
        except CannotBeCut as reason:
            whole = replace(spec, obstacle=f"{name} cannot be cut: {reason}", maps=_maps(network, image))
            return replace(whole, blocks=find_blocks(network, image))
        return replace(spec, cut_at=cut, insertion_points=cut.insertion_points, channels=cut.channels)


def source_of(name: str) -> Source:
    """Return what a name stands for; that of a repository is read from its `config.json`.

    Raises:
        WeightsError: that file cannot be had from here, or says nothing about a network of timm.
    """
    if not name.startswith(HUB):
        known = name.removeprefix(TIMM)
        return Source(name, known.partition(".")[0], _facts(known), {})
    repository = name.removeprefix(HUB)
    said = read_description(repository)
    # Where the repository is silent, timm's own entry of the architecture speaks, but not for the licence.
    facts = {**_facts(said.architecture, remove_source=True), "license": None, **said.facts, "hf_hub_id": repository}
    return Source(name, said.architecture, facts, said.arguments, said.canonical)


def _maps(network: Any, image: torch.Tensor) -> dict[int, int]:
    """Choose which maps a network gives that runs as a whole: of stages all but the last, whose features they are."""
    stages = getattr(network, "feature_info", [])
    if not stages or not hasattr(network, "forward_intermediates"):
        return {}
    count = len(stages)
    if stages[0]["reduction"] == stages[-1]["reduction"]:
        chosen = sorted({count * (quarter + 1) // MAPS - 1 for quarter in range(MAPS)} - {-1})
    else:
        chosen = list(range(max(0, count - 1 - MAPS), count - 1))
    if not chosen:
        return {}
    try:
        _, maps = network.forward_intermediates(image, indices=chosen, output_fmt="NCHW")
    except Exception:  # a network whose maps take their shape from values, which shapes alone do not tell
        return {}
    return {index: one.shape[1] for index, one in zip(chosen, maps, strict=True)}


def _facts(name: str, *, remove_source: bool = False) -> dict[str, Any]:
    """Return timm's configuration of the weights of a name, of the first that an architecture has if it names none."""
    from timm.models import PretrainedCfg, get_pretrained_cfg

    facts: dict[str, Any] = (get_pretrained_cfg(name) or PretrainedCfg()).to_dict(remove_source=remove_source)
    return facts


def _tags(architecture: str) -> Collection[str]:
    from timm.models import get_arch_pretrained_cfgs

    found = (name.partition(".")[2] for name in get_arch_pretrained_cfgs(architecture))
    return [tag for tag in found if tag]
