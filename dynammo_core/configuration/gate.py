"""Bounds on how much worse a model may be than the deployed one before a person has to release it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from dynammo_core.support.yaml_files import Section


class GateSettings(Section):
    """What a new model is compared by, on the classes that the deployed one knows; without a bound nothing is held."""

    retention: float | None = Field(
        default=None, ge=0, le=100, description="most points of accuracy that may be lost, over all sites"
    )
    worst_site: float | None = Field(
        default=None, ge=0, le=100, description="most points of accuracy that may be lost at any one site"
    )
    class_recall: float | None = Field(
        default=None, ge=0, le=100, description="most points of recall that any one class may lose, over all sites"
    )
    broken: Literal["continue", "stop"] = Field(
        default="continue",
        description="what the run does after a broken bound; in both cases the deployed model stays",
    )

    @property
    def bounds(self) -> dict[str, float]:
        """Return the bounds that are set, by name."""
        named = {"retention": self.retention, "worst_site": self.worst_site, "class_recall": self.class_recall}
        return {name: bound for name, bound in named.items() if bound is not None}
