"""Settings of the methods that solve a classifier in closed form, on features of a frozen network."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal, TypeAlias

from pydantic import Field, ValidationInfo, field_validator

from dynammo_core.configuration.federation import FederationSettings, RoundRules
from dynammo_core.configuration.privacy import OWN_HEADS_TELL
from dynammo_core.configuration.settings import BackboneSettings, MethodSettings
from dynammo_core.models.names import Pooling

Prior: TypeAlias = Literal["equal", "observed"] | dict[str, Annotated[float, Field(gt=0)]]

MultiScale: TypeAlias = Annotated[
    bool | Literal["blocks"],
    Field(
        description="use maps from inside the network, pooled, beside the last features; true: the inputs of every "
        "stage; blocks: the outputs of every block, before the first stage too"
    ),
]

Tukey: TypeAlias = Annotated[
    float, Field(gt=0, le=1, description="power of the features (their sign is kept); 1: as they are")
]

FEWEST_SITES = 3
"""Fewest sites whose sums may come down together: who sent one of two could subtract it, and read the other."""


class FeatureSettings(MethodSettings):
    """The features of the frozen network that are classified."""

    multi_scale: MultiScale = True
    pooling: Pooling = Field(
        default="mean",
        description="pooling of maps from inside the network; mean: each channel's mean; spread: its mean and standard "
        "deviation; grid: its mean in each quarter of the map, and its standard deviation",
    )


class ClosedFormSettings(FeatureSettings):
    """The features, and how smooth the solution is."""

    regulariser: Annotated[float, Field(gt=0)] | Literal["dimension"] | None = Field(
        default=None,
        description="regulariser of the ridge regression, a number above 0; dimension: features for each image, "
        "where uneven classes make fewer of many, which serves those better and is solved many times faster; null: "
        "chosen by generalised cross-validation on the sums",
    )
    prior: Prior = Field(
        default="equal",
        description="how frequent the classifier takes each class to be; equal: all the same, so that rare ones are "
        "recognised as well as common ones; observed: as in the training images; or a share for each class, by name",
    )
    personal: bool = Field(
        default=False,
        description="send the common sums to the sites, so that each solves a classifier of its own; report for each "
        "site the common one, its own, and the one it would have alone",
    )

    def obstacle_to_privacy(self, mechanism: str) -> str:
        """Explain why sums cannot be private by client, or under another prior; empty for `example`."""
        if self.personal:
            return OWN_HEADS_TELL
        if mechanism != "example":
            return "its sums over samples have no mean over sites; set privacy.mechanism: example"
        if self.regulariser == "dimension":
            return (
                "noise is as large as features; set method.regulariser: null, which follows the noise, or to a number"
            )
        return (
            "" if self.prior == "equal" else "noised sums are solved for equal classes alone; set method.prior: equal"
        )

    def misfit(self, federation: FederationSettings, backbone: BackboneSettings) -> str:
        """Explain why the common sums may not go to these hospitals; empty if they may, or stay at the server."""
        if self.personal and federation.sums_rows is not None:
            return (
                "personal subtracts a site's sums from the common ones, which federation.sums_rows cuts; leave it null"
            )
        if not self.personal or not federation.site_names:
            return ""
        if federation.evaluate_only:
            return (
                "personal would send the sums to sites that gave none of their own; leave federation.evaluate_only "
                "empty"
            )
        quorum = min(rules.quorum or federation.quorum for rules in (RoundRules(), *(federation.stages or {}).values()))
        if (answer := math.ceil(round(quorum * federation.sites, 6))) < FEWEST_SITES:
            return (
                f"personal would send out the sums of as few as {answer} sites, of which one could read another's; at "
                f"least {FEWEST_SITES} must answer each step: more federation.site_names, or a higher federation.quorum"
            )
        return ""


def misfit_of_memories(params: ClosedFormSettings) -> str:
    """Explain why sums over memories never come down; empty if they are not asked to."""
    if not params.personal:
        return ""
    return (
        "personal cannot be combined with sums over memories: these shrink as classes arrive, and the difference of "
        "two sums shows another site a single exemplar; set method.personal: false, or method.name: streaming_ridge"
    )


class FrozenFeatureSettings(ClosedFormSettings):
    """The features of a frozen network, and what is made of each image's before they are summed."""

    tukey: Tukey = 1.0
    mirrored: bool = Field(
        default=False, description="average each image's features with those of its mirror image, at a second pass"
    )


class RidgeSettings(FrozenFeatureSettings):
    """The features, and sums over the memories of all sites."""

    shrink_towards: Literal["zero", "earlier"] = Field(
        default="zero",
        description="what the regulariser pulls weights of earlier classes to; zero; earlier: those of the classifier "
        "before, which knew more of their images than exemplars show",
    )

    @field_validator("shrink_towards")
    @classmethod
    def _needs_a_regulariser(cls, what: str, info: ValidationInfo) -> str:
        if what == "earlier" and info.data.get("regulariser", 1) is None:
            raise ValueError(
                "earlier needs method.regulariser: dimension, or a number; cross-validation takes one for all classes, "
                "so large that new ones are hardly learnt"
            )
        return what

    def obstacle_to_privacy(self, mechanism: str) -> str:
        """Explain why noised sums have no earlier classifier to be near to."""
        if self.shrink_towards == "earlier":
            return "noised sums are solved by a discriminant, which shrinks nothing; set method.shrink_towards: zero"
        return super().obstacle_to_privacy(mechanism)

    def misfit(self, federation: FederationSettings, backbone: BackboneSettings) -> str:
        """Explain why sums over memories never come down; empty if they are not asked to."""
        return misfit_of_memories(self)


class StreamingRidgeSettings(FrozenFeatureSettings):
    """The features, and sums over everything ever seen."""

    forgets: ClassVar[bool] = True


class RanPACSettings(ClosedFormSettings):
    """The random layer, by default on the last features alone, as published."""

    forgets: ClassVar[bool] = True

    multi_scale: MultiScale = False
    projection_size: int = Field(default=2000, ge=1, description="number of random features that are classified")
    projection_seed: int = Field(
        default=0, ge=0, description="seed of the random features, with which the server and all sites draw the same"
    )


class FeCAMSettings(FeatureSettings):
    """The features, by default the last ones alone, and how their covariance is estimated."""

    forgets: ClassVar[bool] = True

    multi_scale: MultiScale = False
    covariance: Literal["shared", "class"] = Field(
        default="shared",
        description="which covariances there are; shared: one within all classes; class: one for each, of which every "
        "evaluation sends a matrix",
    )
    tukey: Tukey = 0.5
    variance_shrinkage: float = Field(
        default=1.0, gt=0, description="how many times the mean variance is added to each variance"
    )
    covariance_shrinkage: float = Field(
        default=1.0, ge=0, description="how many times the mean covariance is added to each; at most variance_shrinkage"
    )

    @field_validator("covariance_shrinkage")
    @classmethod
    def _at_most(cls, shrinkage: float, info: ValidationInfo) -> float:
        most = info.data.get("variance_shrinkage")
        if most is not None and shrinkage > most:
            raise ValueError(f"{shrinkage:g} must be at most variance_shrinkage, {most:g}, or no inverse need exist")
        return shrinkage

    def obstacle_to_privacy(self, mechanism: str) -> str:
        """Explain why covariances cannot be private here."""
        return "its covariances are not made for noised sums; choose streaming_ridge"
