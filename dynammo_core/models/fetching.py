"""Pretrained weights for machines without internet: into one folder, with words on how to use it there."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from dynammo_core.configuration.settings import HUB
from dynammo_core.models import BACKBONES
from dynammo_core.models.timm_networks.catalogue import TimmSpec
from dynammo_core.support.errors import ConfigError, WeightsError


def fetched(name: str, folder: Path) -> Iterator[str]:
    """Put a backbone's pretrained weights into a folder, and yield lines on what they are and how to use them.

    Raises:
        ConfigError: the name is unknown, or has no pretrained weights.
        WeightsError: the weights cannot be downloaded, or written.
    """
    spec = BACKBONES.find(name, "backbone.name")
    if spec.imagenet is None:
        raise ConfigError(f"{name} has no pretrained weights", accepted="backbone.weights: random, or a file")
    yield f"Licence: {spec.licence}"
    file = spec.imagenet()
    target = folder / (f"{name.partition('/')[2]}{file.path.suffix}" if isinstance(spec, TimmSpec) else file.path.name)
    target = target.with_name(target.name.replace("/", "_"))
    digest = file.sha256()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file.path, target)
    except OSError as error:
        raise WeightsError(f"cannot write {target}: {error.strerror}") from error
    yield f"File: {target}"
    yield "Copy it to each machine, and name it there: in the experiment, and at a site as `weights` in site.yaml"
    yield f"backbone:\n  name: {name}\n  weights: {target.absolute()}\n  sha256: {digest}"
    if name.startswith(HUB):
        yield "Such a name needs its repository's config.json, too: copy the hub's cache (HF_HUB_CACHE) to each machine"
