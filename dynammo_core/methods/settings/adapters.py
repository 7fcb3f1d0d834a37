"""Settings of the methods that tune adapters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, Self, get_args

from pydantic import Field

from dynammo_core.configuration.federation import FederationSettings
from dynammo_core.configuration.optimisation import Optimisation
from dynammo_core.configuration.privacy import OWN_HEADS_TELL
from dynammo_core.configuration.settings import HUB, BackboneSettings, MethodSettings
from dynammo_core.merging import MERGE_OPERATORS
from dynammo_core.models import BACKBONES
from dynammo_core.models.names import Form, Kind
from dynammo_core.support.errors import ConfigError

WEIGHTED = "weighted"
FISHER = "fisher"
"""The operator, its stage, and where the archive keeps what that stage brings."""


class AdapterSettings(MethodSettings):
    """Adapters, and the stage that tunes them."""

    adapter: Literal["auto", "convolution", "lora", "bottleneck"] = Field(
        default="auto",
        description="kind of the adapters; convolution: DynaMMo's, between the stages of a CNN; lora: beside the "
        "linear layers of a transformer's blocks, folded into them after training; bottleneck: beside the MLPs of "
        "these blocks; auto: lora for a transformer, else convolution",
    )
    adapter_rank: int = Field(default=8, ge=1, description="rank of lora, or width of bottleneck")
    alpha: float = Field(
        default=0.5,
        gt=0,
        description="initial value of the learnable scale of an adapter of convolutions; the paper starts at 0.02",
    )
    padding: Literal[0, 1] = Field(
        default=1,
        description="padding of the adapters' convolutions; 0: as in the paper, needs feature maps of at least 3x3 "
        "pixels at every stage",
    )
    norm: Literal["batch", "group"] = Field(
        default="batch",
        description="normalisation in adapters of convolutions; group keeps no statistics across images, which privacy "
        "requires",
    )
    adapter_form: Form = Field(
        default="full",
        description="convolutions of an adapter on maps of c channels: full, as in the paper, with 18 c² weights; "
        "low_rank, by way of c/8 channels, with c²/2; depthwise, a kernel for each channel, with 2 c²",
    )
    adapt: Optimisation = Optimisation(epochs=10, learning_rate=0.02)

    def fitted_to(self, backbone: BackboneSettings, federation: FederationSettings) -> Self:
        """Return these parameters with the kind of adapters that goes with the network, if they leave it open.

        Raises:
            ConfigError: the network is a repository's, which nobody asks for what it holds before an approval.
        """
        if self.adapter != "auto":
            return self
        if backbone.name.startswith(HUB):
            raise ConfigError(
                f"method.adapter: auto cannot be chosen for {backbone.name}, which is read only once it is approved",
                accepted="lora or bottleneck for a transformer, convolution for a chain of stages",
                remedy=f"See which it is: dynammo-sim backbone show {backbone.name}",
            )
        blocks = BACKBONES[backbone.name].blocks if BACKBONES.is_open(backbone.name) else ()
        return self.model_copy(update={"adapter": kind_for(blocks)})

    @property
    def keeps_statistics(self) -> bool:
        """Whether the adapters have batch norm, whose statistics are taken over images."""
        return self.norm == "batch" and self.adapter not in get_args(Kind)

    def misfit_of_places(self, places: int) -> str:
        """Explain why these parameters do not go with so many adapters in a set; empty if they do."""
        return ""

    def obstacle_to_privacy(self, mechanism: str) -> str:
        """Explain why adapters with batch norm cannot be tuned privately; empty if they have none."""
        if not self.keeps_statistics:
            return ""
        return (
            "batch norm mixes the images of a batch, and gradient clipping does not bound the statistics that it "
            "sends; set method.norm: group"
        )


def kind_for(blocks: Sequence[object]) -> Literal["convolution", "lora"]:
    """Choose the kind of adapters for a network with these blocks."""
    return "lora" if blocks else "convolution"


class TaskHeadsSettings(AdapterSettings):
    """The two training stages: adapter tuning and the balanced fine-tuning of the heads."""

    balance: Optimisation = Optimisation(epochs=50, optimizer="adam", learning_rate=1e-3, weight_decay=0.0)
    personal: bool = Field(
        default=False,
        description="after each task let each site train the heads for one more round of `balance` for itself, on its "
        "own images; report for each site the common heads and its own",
    )

    def obstacle_to_privacy(self, mechanism: str) -> str:
        """Explain why heads of sites' own cannot be tested privately, or what tuning forbids; empty if nothing."""
        return OWN_HEADS_TELL if self.personal else super().obstacle_to_privacy(mechanism)


class MergeSettings(AdapterSettings):
    """How the sets of all tasks become one."""

    merge: Annotated[str | tuple[str, ...], MERGE_OPERATORS] = Field(
        default="mean",
        description="operator that merges the adapter sets of all tasks; or a list with one for each insertion point "
        "of the backbone, or for each block of a transformer, first to last",
    )
    merge_density: float = Field(
        default=0.2, gt=0, le=1, description="fraction of a task vector that ties, dare and breadcrumbs keep"
    )
    merge_scale: float = Field(
        default=1.0, gt=0, description="factor on the merged task vector, for operators on task vectors"
    )
    merge_alpha: Literal["average", "fold"] = Field(
        default="average",
        description="merging of the adapters' learnt scales; average: separately; fold: as part of the last norm that "
        "each of them multiplies",
    )
    recalibrate: bool = Field(default=True, description="re-estimate the merged adapters' batch-norm statistics")

    def misfit_of_places(self, places: int) -> str:
        """Explain why the operators do not go with so many adapters in a set; empty if they do."""
        if isinstance(self.merge, str) or len(self.merge) == places:
            return ""
        return (
            f"merge lists {len(self.merge)} operators, but the backbone has {places} insertion points; give one "
            "operator for each, or one for all"
        )

    @property
    def operators(self) -> frozenset[str]:
        """The names of all operators in use."""
        return frozenset([self.merge] if isinstance(self.merge, str) else self.merge)

    def misfit(self, federation: FederationSettings, backbone: BackboneSettings) -> str:
        """Explain why the operators do not go with the backbone or the federation; empty if they do."""
        # A network of an open name is built, and asked for on the net, only once its experiment is admitted.
        named = isinstance(self.merge, str) or BACKBONES.is_open(backbone.name)
        spec = None if named else BACKBONES.get(backbone.name)
        if spec and (misfit := self.misfit_of_places(len(spec.places))):
            return misfit
        if FISHER not in self.operators:
            return ""
        if federation.compression != "none":
            return (
                f"merge: {FISHER} cannot be combined with federation.compression: {federation.compression}, which "
                "would round small squared gradients to 0, or send them as differences from weights; set compression: "
                "none"
            )
        if federation.aggregator == "norm_clipping":
            return (
                f"merge: {FISHER} cannot be combined with federation.aggregator: norm_clipping: squared gradients are "
                "not an update of the weights, so there is no length to clip; choose another aggregator"
            )
        return ""

    def obstacle_to_privacy(self, mechanism: str) -> str:
        """Explain why an operator, or what is merged, cannot be private by a mechanism; empty if all can."""
        if FISHER in self.operators:
            return "no noise hides an image in the mean of squared gradients; choose a method.merge other than fisher"
        if mechanism == "client" and WEIGHTED in self.operators:
            return (
                "it weighs by the exact numbers of images at all sites, and the merged adapters reveal them; choose a "
                "method.merge other than weighted"
            )
        return super().obstacle_to_privacy(mechanism)


class DynaMMoSettings(MergeSettings, TaskHeadsSettings):
    """Parameters of DynaMMo."""

    adapters: bool = Field(default=True, description="train adapters; false: a control with heads on the bare backbone")

    @property
    def keeps_statistics(self) -> bool:
        """Whether there are adapters with batch norm, whose statistics are taken over images."""
        return self.adapters and super().keeps_statistics
