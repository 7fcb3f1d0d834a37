"""What a name stands for: architecture, the configuration of its weights, and how the network is created from both."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dynammo_core.data.transforms import Normalisation
from dynammo_core.models.pretrained import WeightsFile, finite_tensors, misfit
from dynammo_core.models.timm_networks.hub import hub_file
from dynammo_core.support.errors import ConfigError, WeightsError

NON_COMMERCIAL = re.compile(r"(^|[-_ ])(nc|non-?commercial)([-_ ]|$)")
PERMISSIVE = ("apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0")
CLASSES = 1000
MOST_BYTES = 8 * 10**9
"""Largest file of weights that is downloaded; the largest open image encoders have 5 GB."""
NOWHERE_ELSE = dict.fromkeys(("source", "url", "file", "hf_hub_id", "hf_hub_filename", "custom_load"))
"""Where timm would find weights: nowhere but in the tensors that it is given, whose hash was checked."""


@dataclass(frozen=True)
class Source:
    """One entry of timm's table, or one repository of the hub.

    Attributes:
        name: the name in the configuration.
        architecture: timm's name of the network.
        facts: timm's configuration of the weights: input size, mean, deviation, licence, where they are.
        arguments: what the constructor needs beside its defaults.
        described: what a repository says of all this, which its weights are pinned with; empty for timm's own entries,
            which are part of the code.
    """

    name: str
    architecture: str
    facts: Mapping[str, Any]
    arguments: Mapping[str, Any]
    described: bytes = b""

    @property
    def image_size(self) -> int:
        """Return the side in pixels of the images that the weights were trained on."""
        return int(self.facts["input_size"][-1])

    @property
    def normalisation(self) -> Normalisation:
        """Return mean and standard deviation of the channels of these images."""
        mean, std = (tuple(map(float, self.facts[key])) for key in ("mean", "std"))
        return mean, std  # type: ignore[return-value]  # three channels each, as of all RGB images

    @property
    def repository(self) -> str | None:
        """Return the hub's repository of the weights, `OWNER/NAME` or `OWNER/NAME@REVISION`; None if there is none."""
        return self.facts.get("hf_hub_id")

    @property
    def licence(self) -> str:
        """Return the licence of the weights, and what it demands beyond naming the authors, as far as timm knows."""
        licence = str(self.facts.get("license") or "unknown").lower()
        if licence == "unknown":
            return "unknown: read the page of the weights before you use them"
        if NON_COMMERCIAL.search(licence):
            return f"{licence} (non-commercial: no use in care or products)"
        return (
            licence if licence in PERMISSIVE else f"{licence} (terms of its own, some ask for consent: read them first)"
        )

    def weights(self) -> WeightsFile:
        """Return the file of the pretrained weights, downloaded once into the hub's cache.

        Raises:
            WeightsError: there are none as safetensors, or they cannot be had from here.
        """
        if self.repository is None:
            raise WeightsError(
                f"{self.name} has no pretrained weights on the hub", accepted="random, or the path of a file"
            )
        return WeightsFile(hub_file(self.repository, self._file_name, most=MOST_BYTES), described=self.described)

    def held(self) -> WeightsFile | None:
        """Return the file of the pretrained weights if it is in the hub's cache; nothing is downloaded."""
        from huggingface_hub import try_to_load_from_cache

        if self.repository is None:
            return None
        where, _, revision = self.repository.partition("@")
        path = try_to_load_from_cache(where, self._file_name, revision=revision or None)
        return WeightsFile(Path(path), described=self.described) if isinstance(path, str) else None

    @property
    def _file_name(self) -> str:
        named = self.facts.get("hf_hub_filename") or "model.safetensors"
        return (
            "open_clip_model.safetensors" if named == "open_clip_pytorch_model.bin" else str(named)
        )  # lie side by side

    def create(self, image_size: int, file: WeightsFile | None = None) -> nn.Module:
        """Create the network without its classifier, for images of that side, with the weights in `file` or at random.

        timm itself renames the tensors of foreign files, and resizes position embeddings.

        Raises:
            ConfigError: the network does not take images of that side.
            WeightsError: the file cannot be read, or its tensors do not fit.
        """
        from timm import create_model  # seconds of import that other backbones need not pay

        # No classes here and there: then timm demands every tensor, and none beside the classifier's, left out below.
        facts = {**self.facts, "num_classes": 0, "label_offset": 0, **NOWHERE_ELSE}
        if file is not None:
            facts["state_dict"] = self.without_classifier(finite_tensors(file))
            if not facts["state_dict"]:
                raise misfit(file.path, "it holds no tensor of the network")
            self._refuse_other_patches(facts["state_dict"], file.path)
        size = {} if image_size == self.image_size else self._size(image_size)
        try:
            network: nn.Module = create_model(
                self.architecture,
                pretrained=file is not None,
                pretrained_cfg=facts,
                **{**self.arguments, "num_classes": 0, **size},
            )
        except TypeError as error:
            if "img_size" not in str(error):
                raise ConfigError(f"backbone.name: {self.name} cannot be built ({_first_problem(error)})") from error
            raise self._wrong_size(image_size, str(self.image_size)) from error
        except (RuntimeError, KeyError, ValueError, AssertionError) as error:
            if file is None:
                raise self._wrong_size(image_size, f"{self.image_size}, and others that it can divide") from error
            what = f"it is not {self.architecture} ({_first_problem(error)})"
            if "key(s)" in what:  # tensors too few or too many: a prefix, or parts that only training needs
                what += "; `dynammo-sim backbone convert` takes a network out of a checkpoint"
            raise misfit(file.path, what) from error
        vars(network).update(pretrained_cfg={}, default_cfg={})  # they would carry the weights a second time
        self._check_patches(network, image_size)
        return network

    def _size(self, image_size: int) -> dict[str, int]:
        return {"img_size": image_size} if self.facts.get("fixed_input_size") or "img_size" in self.arguments else {}

    def _check_patches(self, network: nn.Module, image_size: int) -> None:
        """Refuse a side that leaves pixels over, which a network would drop without a word."""
        patches = getattr(getattr(network, "patch_embed", None), "proj", None)
        side = patches.stride[0] if isinstance(patches, nn.Conv2d) and patches.stride == patches.kernel_size else 1
        if image_size % side:
            nearest = max(side, round(image_size / side) * side)
            raise self._wrong_size(image_size, f"multiples of {side}, the side of its patches, such as {nearest}")

    def _refuse_other_patches(self, tensors: Mapping[str, Tensor], path: Path) -> None:
        """Refuse weights for patches of another size, which timm would resample, and the features be others."""
        from timm import create_model

        with torch.device("meta"):
            network = create_model(self.architecture, **{**self.arguments, "num_classes": 0})
        patches = getattr(getattr(network, "patch_embed", None), "proj", None)
        if not isinstance(patches, nn.Conv2d):
            return
        own = tuple(patches.weight.shape)
        for name, tensor in tensors.items():
            if tensor.ndim == len(own) and tensor.shape[:2] == own[:2] and tuple(tensor.shape) != own:
                theirs, ours = ("x".join(map(str, shape[2:])) for shape in (tensor.shape, own))
                what = f"{name!r} takes patches of {theirs} pixels, and those of {self.architecture} have {ours}"
                raise misfit(path, what)

    def _wrong_size(self, image_size: int, accepted: str) -> ConfigError:
        return ConfigError(
            f"data.image_size: {self.name} does not take images of {image_size} pixels", accepted=accepted
        )

    def without_classifier(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Leave out what the network has for classes alone, of however many layers."""
        from timm import create_model

        with torch.device("meta"):
            whole, bare = (
                create_model(self.architecture, **{**self.arguments, "num_classes": classes}).state_dict()
                for classes in (CLASSES, 0)
            )
        return {name: tensor for name, tensor in tensors.items() if name in bare or name not in whole}


def _first_problem(error: Exception) -> str:
    """Return the first thing that a failed load complains about, without its heading."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[1] if len(lines) > 1 else lines[0] if lines else type(error).__name__)[:200].rstrip(". ")
