"""The price of secure aggregation, from two real runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_runs import small_config

from simulations.bench.secure_cost import SecureCost, secure_cost


def test_both_ways_are_run_and_compared(tmp_path: Path) -> None:
    cost = secure_cost(small_config("streaming_ridge"), tmp_path)
    assert cost.accuracy_difference == 0
    assert {run["status"] for run in (cost.plain, cost.secure)} == {"completed"}
    # Of float64 sums the vector is no larger: what is added are counts, keys of 64 bytes and shares.
    assert 1 < cost.ratio("bytes_up") < 2
    assert cost.ratio("seconds") > 0


def test_ratios_are_of_secure_to_plain() -> None:
    one = {"bytes_up": 10, "bytes_down": 30, "seconds": 2.0, "accuracy_after_tasks": [90.0, 70.0]}
    other = {"bytes_up": 30, "bytes_down": 30, "seconds": 5.0, "accuracy_after_tasks": [90.0, 71.5]}
    cost = SecureCost(one, other)
    assert (cost.ratio("bytes_up"), cost.ratio("seconds"), cost.bytes_ratio) == (3.0, 2.5, 1.5)
    assert cost.accuracy_difference == pytest.approx(1.5)
