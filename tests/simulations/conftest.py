"""What the tests of comparisons share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from server.run.run import run_experiment
from simulations.comparisons import page, process_pool


@pytest.fixture(scope="module")
def small_pages() -> Iterator[None]:
    """Let pages count the cost of a small network alone, and runs of this process leave no page of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(process_pool, "run_and_report", run_experiment)
        patch.setattr(page, "COST_BACKBONES", ("small_cnn",))
        yield
