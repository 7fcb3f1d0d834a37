"""Both ways of training several sites end with the same tensors, and the one that is said to be faster is."""

from __future__ import annotations

import pytest
from small_runs import small_config

from dynammo_core.models import stacked_adapters
from dynammo_core.support.errors import ConfigError
from simulations.bench.stacked import measured


def test_small_networks_train_faster_together_and_end_alike() -> None:
    (row,) = measured(small_config(), [8], [4], batches=10, repeats=3)
    assert (row.sites, row.batch) == (8, 4)
    # float32: sums in another order, in a few steps.
    assert row.difference < 1e-5
    # Steps of 4 small images are all overhead, and 8 sites share a step: three times as fast and more.
    assert row.ratio > 1.2


def test_tensors_that_differ_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stacked_adapters, "unstack", lambda stacked, models: None)
    (row,) = measured(small_config(), [2], [4], batches=1, repeats=1)
    assert row.difference > 1e-3


def test_a_method_without_adapters_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"method\.name: replay trains no adapters.*dynammo"):
        measured(small_config("replay"), [2], [4], batches=1, repeats=1)
