"""What the tests of comparisons share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from simulations.comparisons import page


@pytest.fixture(scope="module")
def one_cost_backbone() -> Iterator[None]:
    """Let pages count the cost of a small network alone; the three of real pages take their time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "COST_BACKBONES", ("small_cnn",))
        yield
