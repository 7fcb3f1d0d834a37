"""The section `scanners` of an experiment's YAML."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from dynammo_core.support.yaml_files import Section


class ScannerSettings(Section):
    """How differently simulated laboratories take their images, and which statistics each site normalises by."""

    kind: Literal["same", "contrast", "stain", "resolution", "noise", "mixed"] = Field(
        default="same",
        description="how each simulated site changes its images; mixed: in all of these ways; same: not at all",
    )
    strength: float = Field(default=0.5, gt=0, le=1, description="how much the simulated scanners may differ")
    own_statistics: Literal["none", "trained", "frozen", "all"] = Field(
        default="none",
        description="batch-norm statistics that each site estimates on its own images; trained: those of the adapters, "
        "or of the network if the method trains it; frozen: those of a frozen backbone, once; all: both",
    )
