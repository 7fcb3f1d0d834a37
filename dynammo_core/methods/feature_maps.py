"""What methods share that classify a fixed function of the features, and not the features themselves."""

from __future__ import annotations

from torch import Tensor, nn

from dynammo_core.methods.closed_form import scales
from dynammo_core.methods.settings.closed_form import FeatureSettings, FrozenFeatureSettings
from dynammo_core.models.incremental_model import AdaptedBackbone, Extractor, IncrementalModel


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


class MirroredBackbone(Extractor):
    """Averages the features of an image and of its mirror image, left and right, which most diagnoses do not tell."""

    def __init__(self, inner: Extractor) -> None:
        super().__init__()
        self.inner = inner
        self.feature_dim = inner.feature_dim

    def _prefix(self, images: Tensor) -> Tensor:
        return images

    def _from_prefix(self, maps: Tensor) -> Tensor:
        both: Tensor = self.inner(maps) + self.inner(maps.flip(3))
        return both / 2


def features_to_map(params: FeatureSettings, model: IncrementalModel) -> AdaptedBackbone:
    """Make the extractor of the features that the settings name, on the backbone of a model that has not grown yet."""
    assert isinstance(model.extractor, AdaptedBackbone)
    return scales(params, model.extractor.backbone)


def grow_frozen(params: FrozenFeatureSettings, model: IncrementalModel, task: int) -> None:
    """Give the model, with its first task, the features that the settings name."""
    if task:
        return
    made: Extractor = features_to_map(params, model)
    if params.tukey != 1:
        made = MappedBackbone(made, TukeyPower(made.feature_dim, params.tukey))
    model.extractor = MirroredBackbone(made) if params.mirrored else made
