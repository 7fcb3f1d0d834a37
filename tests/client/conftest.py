"""One SuperLink for all tests of the site's side, as Flower has it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from site_bench import SuperLink, running_superlink


@pytest.fixture(scope="session")
def superlink(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SuperLink]:
    with running_superlink(tmp_path_factory.mktemp("superlink")) as link:
        yield link
