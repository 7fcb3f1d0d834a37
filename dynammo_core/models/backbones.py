"""Backbones, which are pretrained CNNs cut at the points where adapters go, and the list of those in this project."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Self

from torch import Tensor, nn

from dynammo_core.configuration.settings import BackboneSettings
from dynammo_core.data.transforms import NORMALISATIONS, Normalisation, Resize
from dynammo_core.models import BACKBONES
from dynammo_core.models.pretrained import (
    LITE0_DEPTHS,
    LITE_DEPTHS,
    WeightsFile,
    WeightsSource,
    lite_package_file,
    lite_to_timm,
    load_pretrained,
    locate_weights,
    torchvision_weights,
)
from dynammo_core.models.transformers.blocks import Block
from dynammo_core.support.seeding import seeded_initialisation


class GlobalMean(nn.Module):
    """Global average pooling."""

    def forward(self, maps: Tensor) -> Tensor:
        """Return the mean of maps Tensor[B, C, H, W] over H and W, Tensor[B, C]."""
        return maps.mean(dim=(2, 3))


class Backbone(nn.Module):
    """A CNN without its classifier, cut at its insertion points: prefix, then adapter i and stage i for each i.

    Attributes:
        prefix: everything before the first adapter.
        stages: stage i runs after adapter i.
        channels: channels of the maps that enter each stage, the width of each adapter.
        map_channels: channels of the maps that `stage_inputs` gives.
        feature_dim: width D of the features.
        head: turns the last maps into features.
        obstacle: why no adapter can be inserted between stages; empty if they can be.
        blocks: where adapters for transformers can go; empty for a network that is cut.
        frozen: whether the weights and the batch-norm statistics are fixed.
    """

    def __init__(
        self,
        prefix: nn.Module,
        stages: Sequence[nn.Module],
        channels: tuple[int, ...],
        feature_dim: int,
        head: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if len(stages) != len(channels):
            raise ValueError(f"{len(stages)} stages, but {len(channels)} adapter widths")
        self.prefix = prefix
        self.stages = nn.ModuleList(stages)
        self.channels = self.map_channels = channels
        self.feature_dim = feature_dim
        self.head = head or GlobalMean()
        self.obstacle = ""
        self.blocks: tuple[Block, ...] = ()
        self.frozen = False

    def forward(self, images: Tensor, adapters: Iterable[nn.Module] | None = None) -> Tensor:
        """Return features Tensor[B, D] of normalised images Tensor[B, 3, S, S]; adapters, if any, are one per stage."""
        return self.from_prefix(self.prefix(images), adapters)

    def from_prefix(self, maps: Tensor, adapters: Iterable[nn.Module] | None = None) -> Tensor:
        """Return features Tensor[B, D] from the output Tensor[B, C, H, W] of `prefix`, which is not modified."""
        for adapter, stage in self._pairs(adapters):
            maps = stage(adapter(maps))
        features: Tensor = self.head(maps)
        return features

    def stage_inputs(self, maps: Tensor, adapters: Iterable[nn.Module] | None = None) -> tuple[list[Tensor], Tensor]:
        """Return the adapted maps Tensor[B, C_i, H_i, W_i] that enter each stage, and the features Tensor[B, D]."""
        inputs = []
        for adapter, stage in self._pairs(adapters):
            inputs.append(adapter(maps))
            maps = stage(inputs[-1])
        return inputs, self.head(maps)

    def stage_outputs(self, images: Tensor, adapters: Iterable[nn.Module] | None = None) -> tuple[list[Tensor], Tensor]:
        """Return the maps Tensor[B, C_i, H_i, W_i] after each stage, and the features Tensor[B, D]."""
        outputs = [self.prefix(images)]
        for adapter, stage in self._pairs(adapters):
            outputs.append(stage(adapter(outputs[-1])))
        return outputs[1:], self.head(outputs[-1])

    def resizing(self, before: int, side: int) -> Self:
        """Resize images Tensor[B, 3, before, before] to a side before all else, from now on; return itself."""
        self.prefix = nn.Sequential(OrderedDict([("resize", Resize(before, side)), *self.prefix.named_children()]))
        return self

    def freeze(self) -> Self:
        """Fix weights and batch-norm statistics for good, whatever mode a parent module is put in; return itself."""
        self.frozen = True
        self.requires_grad_(False)
        return self.eval()

    def train(self, mode: bool = True) -> Self:
        """Set the mode as `nn.Module.train` does, except that a frozen backbone stays in evaluation mode."""
        return super().train(mode and not self.frozen)

    def _pairs(self, adapters: Iterable[nn.Module] | None) -> Iterator[tuple[nn.Module, nn.Module]]:
        """Yield the adapter before each stage, and the stage."""
        if adapters is None:
            adapters = [nn.Identity()] * len(self.stages)
        return zip(adapters, self.stages, strict=True)


@dataclass(frozen=True)
class BackboneSpec:
    """How to build a network, where to cut it, and where its ImageNet weights come from.

    Attributes:
        build: makes the uncut, untrained network; its children, in order, are the steps of its forward pass.
        insertion_points: names of the modules that have an adapter before them.
        channels: channels of the maps at each insertion point.
        feature_dim: width of the features after global average pooling.
        dropped: children behind the features (pooling, classifier), which the cut leaves out.
        imagenet: finds the file of pretrained weights; None if the network has none.
        rename: maps the names of tensors in files of weights to those in the network.
        normalisation: mean and standard deviation of the images that these weights were trained on.
        licence: of these weights.
        blocks: where adapters for transformers can go.
        described: what a repository says of them that is pinned with them, by `backbone.sha256`.
    """

    build: Callable[[], nn.Module]
    insertion_points: tuple[str, ...]
    channels: tuple[int, ...]
    feature_dim: int
    dropped: tuple[str, ...]
    imagenet: WeightsSource | None = None
    rename: Callable[[str], str] = str
    normalisation: Normalisation = NORMALISATIONS["imagenet"]
    licence: str = "unknown"
    blocks: tuple[Block, ...] = ()
    described: bytes = b""

    @property
    def places(self) -> tuple[str, ...]:
        """Return the names of the modules, stages or blocks, each of which has an adapter."""
        return self.insertion_points or tuple(block.name for block in self.blocks)

    def assemble(self, file: WeightsFile | None, image_size: int | None) -> nn.Module:
        """Build the uncut network, with the weights in `file` or at random; images of any size go through it.

        Raises:
            WeightsError: the file cannot be read, or its tensors do not fit.
        """
        network = self.build()
        if file is not None:
            load_pretrained(network, file, dropped=self.dropped, rename=self.rename)
        return network

    def cut(self, network: nn.Module) -> Backbone:
        """Return the backbone made of the modules of the uncut `network`, which it shares."""
        sections: list[OrderedDict[str, nn.Module]] = [OrderedDict()]
        for name, module in self._steps(network):
            if name in self.insertion_points:
                sections.append(OrderedDict())
            sections[-1][name.replace(".", "_")] = module
        prefix, *stages = (nn.Sequential(section) for section in sections)
        return Backbone(prefix, stages, self.channels, self.feature_dim)

    def _steps(self, network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        """Yield the modules of the forward pass up to the features; those that a cut goes through, child by child."""
        opened = {point.split(".")[0] for point in self.insertion_points if "." in point}
        for name, child in network.named_children():
            if name in opened:
                yield from ((f"{name}.{inner}", module) for inner, module in child.named_children())
            elif name not in self.dropped:
                yield name, child


def build_backbone(settings: BackboneSettings, seed: int, image_size: int | None = None) -> Backbone:
    """Build the backbone that `settings` names, trainable until it is frozen; random weights depend on `seed` alone.

    Args:
        settings: the network and its weights, and the side to which it resizes images, if any.
        seed: of random weights.
        image_size: side of the images, for networks that are built for one; None: that at which they are seen, or that
            of their pretrained weights.

    Raises:
        ConfigError: the settings contradict each other, or the network takes no images of that side.
        WeightsError: the weights cannot be found or do not fit.
    """
    spec = BACKBONES[settings.name]
    file = locate_weights(settings, spec.imagenet, spec.described)
    with seeded_initialisation(seed, "backbone"):
        network = spec.assemble(file, settings.image_size or image_size)
    backbone = spec.cut(network)
    if image_size is None or settings.image_size is None:
        return backbone
    return backbone.resizing(image_size, settings.image_size)


def _torchvision(name: str) -> nn.Module:
    from torchvision.models import get_model  # torchvision and timm take seconds to import: only for their backbones

    network: nn.Module = get_model(name, weights=None)
    return network


def _timm(name: str) -> nn.Module:
    from timm import create_model

    network: nn.Module = create_model(name, pretrained=False)
    return network


def _small_cnn() -> nn.Module:
    """Build a network for tests: four blocks of convolution, batch norm and ReLU, each of which halves the side."""
    widths = (3, 8, 16, 32, 64)
    network = nn.Sequential()
    for index, (before, after) in enumerate(pairwise(widths)):
        convolution = nn.Conv2d(before, after, kernel_size=3, stride=2, padding=1, bias=False)
        nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
        network.add_module(f"block{index}", nn.Sequential(convolution, nn.BatchNorm2d(after), nn.ReLU()))
    network.add_module("pool", nn.AdaptiveAvgPool2d(1))
    network.add_module("flatten", nn.Flatten())
    network.add_module("classifier", nn.Linear(widths[-1], 10))
    return network


RESNET18 = BackboneSpec(
    build=partial(_torchvision, "resnet18"),
    insertion_points=("layer1", "layer2", "layer3", "layer4"),
    channels=(64, 64, 128, 256),
    feature_dim=512,
    dropped=("avgpool", "fc"),
    imagenet=partial(torchvision_weights, "ResNet18_Weights.IMAGENET1K_V1"),
    licence="bsd-3-clause",
)
MOBILENET_V2 = BackboneSpec(
    build=partial(_torchvision, "mobilenet_v2"),
    insertion_points=("features.3", "features.5", "features.12", "features.15"),
    channels=(24, 32, 96, 160),
    feature_dim=1280,
    dropped=("classifier",),
    imagenet=partial(torchvision_weights, "MobileNet_V2_Weights.IMAGENET1K_V1"),
    licence="bsd-3-clause",
)
EFFICIENTNET_B0 = BackboneSpec(
    build=partial(_torchvision, "efficientnet_b0"),
    insertion_points=("features.4", "features.5", "features.6", "features.8"),
    channels=(40, 80, 112, 320),
    feature_dim=1280,
    dropped=("avgpool", "classifier"),
    imagenet=partial(torchvision_weights, "EfficientNet_B0_Weights.IMAGENET1K_V1"),
    licence="bsd-3-clause",
)


def _efficientnet_lite(number: int, depths: tuple[int, ...], channels: tuple[int, ...]) -> BackboneSpec:
    """Describe EfficientNet-Lite; timm counts its seven groups of blocks from 0, torchvision from 1."""
    return BackboneSpec(
        build=partial(_timm, f"tf_efficientnet_lite{number}"),
        insertion_points=("blocks.3", "blocks.4", "blocks.5", "conv_head"),
        channels=channels,
        feature_dim=1280,
        dropped=("global_pool", "classifier"),
        imagenet=partial(lite_package_file, number),
        rename=partial(lite_to_timm, depths),
        normalisation=NORMALISATIONS["half"],
        licence="apache-2.0",
    )


EFFICIENTNET_LITE0 = _efficientnet_lite(0, LITE0_DEPTHS, (40, 80, 112, 320))
EFFICIENTNET_LITE1 = _efficientnet_lite(1, LITE_DEPTHS, (40, 80, 112, 320))
EFFICIENTNET_LITE2 = _efficientnet_lite(2, LITE_DEPTHS, (48, 88, 120, 352))
SMALL_CNN = BackboneSpec(
    build=_small_cnn,
    insertion_points=("block1", "block2", "block3"),
    channels=(8, 16, 32),
    feature_dim=64,
    dropped=("pool", "flatten", "classifier"),
    normalisation=NORMALISATIONS["half"],
)
