"""What all tests share."""

from __future__ import annotations

import pytest
import torch
from hypothesis import settings

# The same examples in every run; no deadline, which a busy machine would miss.
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Sums of floats repeat bit for bit, whatever the number of cores."""
    torch.set_num_threads(1)
