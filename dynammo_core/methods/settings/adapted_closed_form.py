"""Settings of the methods that solve their classifier on features of a network with adapters."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from dynammo_core.configuration.federation import FederationSettings
from dynammo_core.configuration.settings import BackboneSettings, FirstBackbone
from dynammo_core.methods.settings.adapters import AdapterSettings, MergeSettings
from dynammo_core.methods.settings.closed_form import ClosedFormSettings, misfit_of_memories
from dynammo_core.models.names import Pooling


class AdaptedClosedFormSettings(AdapterSettings, ClosedFormSettings):
    """The features with adapters."""

    frozen_beside: bool = Field(
        default=False,
        description="use the bare network's features beside those with adapters, at the cost of a second pass",
    )

    def obstacle_to_privacy(self, mechanism: str) -> str:
        """Explain why adapters and sums cannot be private together."""
        return "there is no joint privacy accounting for its adapters and its sums; choose dynammo or streaming_ridge"


class FirstSessionSettings(AdaptedClosedFormSettings):
    """As measured best on validation images: both networks' features, with their spread."""

    forgets: ClassVar[bool] = True

    pooling: Pooling = "spread"
    frozen_beside: bool = True


class DynaMMoRidgeSettings(MergeSettings, AdaptedClosedFormSettings):
    """Parameters of merged adapters, and of the classifier on their features."""

    def misfit(self, federation: FederationSettings, backbone: BackboneSettings) -> str:
        """Explain what of the merge, or of the sums, does not go with those sections."""
        return super().misfit(federation, backbone) or misfit_of_memories(self)


class MovingRidgeSettings(MergeSettings, AdaptedClosedFormSettings):
    """Parameters of merged adapters, of the classifier on their features, and of what becomes of its sums."""

    forgets: ClassVar[bool] = True
    outlives_network: ClassVar[bool] = True

    adapters: bool = Field(
        default=True, description="tune adapters in each task; false: features change with the network alone"
    )
    past: Literal["moved", "kept", "anew"] = Field(
        default="moved",
        description="sums of past images after features have changed; moved: carried along by a map from old to new "
        "features; for comparison, kept: as they are; anew: summed again from all past images, which hospitals need "
        "not have any more",
    )
    residual: bool = Field(
        default=True, description="add the covariance that the map leaves unexplained to sums that are moved"
    )

    def misfit(self, federation: FederationSettings, backbone: BackboneSettings) -> str:
        """Explain why the merge does not go with those sections, or why moved sums serve no site's own head."""
        if self.personal:
            return "personal needs sums that still hold a site's own images as they are; set method.personal: false"
        if self.past == "kept" and isinstance(backbone, FirstBackbone) and backbone.changes:
            return "past: kept leaves sums of another network's features, which fit no other; set method.past: moved"
        if self.past == "anew" and federation.site_names:
            return "past: anew sums all past images in each task, a comparison for simulations; set method.past: moved"
        return super().misfit(federation, backbone)
