"""The section `scanners` of an experiment's YAML."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from dynammo_core.configuration.settings import Section


class ScannerSettings(Section):
    """How differently simulated laboratories take their images, and which statistics each site normalises by."""

    kind: Literal["same", "contrast", "stain", "resolution", "noise", "mixed"] = Field(
        default="same", description="what each simulated site does to its images; mixed: all of these; same: nothing"
    )
    strength: float = Field(default=0.5, gt=0, le=1, description="how far apart the scanners may lie")
    own_statistics: Literal["none", "trained", "frozen", "all"] = Field(
        default="none",
        description="batch-norm statistics that each site estimates for itself; trained: of the adapters, or of the "
        "network if the method trains it; frozen: of a frozen backbone, once",
    )
