"""What methods share that classify a fixed function of the features, and not the features themselves."""

from __future__ import annotations

from torch import Tensor, nn

from dynammo_core.methods.closed_form import FeatureSettings, scales
from dynammo_core.models.incremental_model import AdaptedBackbone, Extractor, IncrementalModel


class FeatureMap(nn.Module):
    """Turns features Tensor[B, D] into others, Tensor[B, E], without anything that is trained.

    Attributes:
        feature_dim: width E.
    """

    feature_dim: int


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


def features_to_map(params: FeatureSettings, model: IncrementalModel) -> AdaptedBackbone:
    """Make the extractor of the features that the settings name, on the backbone of a model that has not grown yet."""
    assert isinstance(model.extractor, AdaptedBackbone)
    return scales(params, model.extractor.backbone)
