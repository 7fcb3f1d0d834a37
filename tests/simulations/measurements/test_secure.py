"""The price of secure aggregation, from two real runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console
from small_runs import small_config

from simulations.comparisons.progress import run_under_display
from simulations.measurements.secure import SecureCost, plan, secure_cost


def test_both_ways_are_run_and_compared(tmp_path: Path) -> None:
    cells = plan(small_config("streaming_ridge"))
    assert [cell.config.federation.secure_aggregation for cell in cells] == [True, False]
    assert secure_cost(cells, tmp_path) is None
    assert run_under_display(cells, tmp_path, Console(quiet=True), workers=1) == {}
    cost = secure_cost(cells, tmp_path)
    assert cost is not None
    assert cost.accuracy_difference == 0
    # Sums of few images travel as thin factors, which masks do not allow; whole ones would be no larger under masks.
    assert 2 < cost.ratio("bytes_up") < 10
    assert cost.ratio("seconds") > 0


def test_ratios_are_of_secure_to_plain() -> None:
    shared = {"sites": 3, "last_accuracy": 70.0}
    one = {"bytes_up": 10, "bytes_down": 30, "seconds": 2.0, "accuracy_after_tasks": [90.0, 70.0]} | shared
    other = {"bytes_up": 30, "bytes_down": 30, "seconds": 5.0, "accuracy_after_tasks": [90.0, 71.5]} | shared
    cost = SecureCost(one, other)
    assert (cost.ratio("bytes_up"), cost.ratio("seconds"), cost.bytes_ratio) == (3.0, 2.5, 1.5)
    assert cost.accuracy_difference == pytest.approx(1.5)
    assert str(cost).startswith("3 sites, secure / plain: bytes 1.50 (up 3.00, down 1.00), seconds 2.50 (5.0 / 2.0); ")
