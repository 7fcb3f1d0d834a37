"""How long an operator's question may take: as long as the experiment gives its sites, and no less."""

from __future__ import annotations

import pytest
from small_runs import small_config

from server.jobs.limits import longest

# A site is waited for 100 s and has 5,000 s; in `evaluate` it has 9,000 s. A job has 300 s for itself.
RULES = {
    "federation.patience_seconds": 100,
    "federation.deadline_seconds": 5000,
    "federation.stages": "{evaluate: {deadline_seconds: 9000}}",
}


@pytest.mark.parametrize(
    ("stages", "more", "seconds"),
    [
        (["evaluate"], {}, 300 + 9100),
        (["forget", "evaluate"], {}, 300 + 5100 + 9100),
        (["evaluate"], {"federation.attempts": 3}, 300 + 3 * 9100),
        (["evaluate"], {"federation.secure_aggregation": True}, 300 + 4 * 9100),  # four exchanges make a sum
    ],
    ids=["evaluate", "forget", "attempts", "secure"],
)
def test_a_job_may_take_as_long_as_its_sites_may(stages: list[str], more: dict[str, int], seconds: float) -> None:
    assert longest(small_config(overrides=RULES | more), *stages) == seconds
