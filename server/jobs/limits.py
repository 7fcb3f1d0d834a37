"""Bound how long a job may take, by what its experiment lets the sites take."""

from __future__ import annotations

from typing import Any

from dynammo_core.configuration.config import Config
from dynammo_core.wire.protocol import Phase

SECONDS = 300.0
"""Seconds that a job may take besides the sites' work: Flower starts several processes."""
COUNTING_SECONDS = 3600.0
"""Seconds for an answer with statistics: a site looks at each of its images."""


def longest(config: Config[Any], *stages: str) -> float:
    """Return the most seconds that a job may take if it asks an experiment's sites in these stages, one by one."""
    federation = config.federation
    exchanges = len(Phase) if federation.secure_aggregation else 1
    asked = sum(federation.patience_seconds + federation.rules(stage)[1] for stage in stages)
    return SECONDS + exchanges * federation.attempts * asked
