"""What methods share that classify a fixed function of the features, and not the features themselves."""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor, nn

from dynammo_core.methods.closed_form import scales
from dynammo_core.methods.settings.closed_form import FeatureSettings, FrozenFeatureSettings
from dynammo_core.models.incremental_model import AdaptedBackbone, Extractor, IncrementalModel
from dynammo_core.support.errors import ConfigError


class FeatureMap(nn.Module):
    """Turns features Tensor[B, D] into others, Tensor[B, E], without anything that is trained.

    Attributes:
        feature_dim: width E.
    """

    feature_dim: int


class TukeyPower(FeatureMap):
    """A power of each feature below 1, on Tukey's ladder, which makes skewed features more like normal ones."""

    def __init__(self, feature_dim: int, power: float) -> None:
        super().__init__()
        self.feature_dim = feature_dim
        self.power = power

    def forward(self, features: Tensor) -> Tensor:
        """Return the powers Tensor[B, D] of features Tensor[B, D], with their signs."""
        return features.sign() * features.abs() ** self.power


class MappedBackbone(Extractor):
    """Puts a feature map behind an extractor, so that sums, caches and exports see what the map returns."""

    def __init__(self, inner: Extractor, feature_map: FeatureMap) -> None:
        super().__init__()
        self.inner = inner
        self.feature_map = feature_map
        self.feature_dim = feature_map.feature_dim

    def _prefix(self, images: Tensor) -> Tensor:
        return self.inner.embed(images, start="images", end="prefix")

    def _from_prefix(self, maps: Tensor) -> Tensor:
        mapped: Tensor = self.feature_map(self.inner.embed(maps, start="prefix"))
        return mapped


class AveragedViews(Extractor):
    """Averages the features of several views of an image, so that what changes between them weighs less.

    Args:
        inner: gives the features of each view.
        mirrored: also show the mirror image, left and right, which most diagnoses do not tell.
        halved: also show means of 2 x 2 pixels: a network sees a lesion's structure in one size, its shape in another.
    """

    def __init__(self, inner: Extractor, mirrored: bool, halved: bool) -> None:
        super().__init__()
        self.inner = inner
        self.mirrored = mirrored
        self.halved = halved
        self.feature_dim = inner.feature_dim

    def _prefix(self, images: Tensor) -> Tensor:
        return images

    def _from_prefix(self, maps: Tensor) -> Tensor:
        views = [maps, nn.functional.avg_pool2d(maps, 2)] if self.halved else [maps]
        if self.mirrored:
            views = [view for size in views for view in (size, size.flip(3))]
        total: Tensor = reduce(torch.add, map(self.inner, views))
        return total / len(views)


def features_to_map(params: FeatureSettings, model: IncrementalModel) -> AdaptedBackbone:
    """Make the extractor of the features that the settings name, on the backbone of a model that has not grown yet."""
    assert isinstance(model.extractor, AdaptedBackbone)
    return scales(params, model.extractor.backbone)


def grow_frozen(params: FrozenFeatureSettings, model: IncrementalModel, task: int) -> None:
    """Give the model, with its first task, the features that the settings name."""
    if task:
        return
    pooled = features_to_map(params, model)
    made: Extractor = pooled
    if params.halved and not pooled.backbone.stages:
        raise ConfigError(
            "method.halved needs a backbone that is a chain of convolutional stages, which take images of any size",
            remedy="Set method.halved: false, or choose such a network",
        )
    if params.tukey != 1:
        made = MappedBackbone(made, TukeyPower(made.feature_dim, params.tukey))
    model.extractor = AveragedViews(made, params.mirrored, params.halved) if params.mirrored or params.halved else made
