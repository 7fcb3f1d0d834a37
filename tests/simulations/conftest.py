"""What the tests of comparisons share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from small_runs import make_pages_small


@pytest.fixture(scope="module")
def small_pages() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        make_pages_small(patch)
        yield
