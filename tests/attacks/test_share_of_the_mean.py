"""A site that claims more images than it has weighs no more than its share, and honest skewed sites what they hold."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from flwr.app import Context, Message, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from small_runs import events, run_small, small_config
from torch import Tensor
from typer.testing import CliRunner

from client.app import app
from dynammo_core.aggregation.class_aware import Update, class_aware_mean, held_to_share
from dynammo_core.aggregation.voices import shares_kept
from dynammo_core.configuration.config import Scalar, load_config
from dynammo_core.configuration.limits import LimitSettings
from dynammo_core.experiment import Experiment
from simulations.bench.shares import effect_of_limit, moved_weights
from simulations.cli import app as command_line
from simulations.engines.local_grid import LocalGrid

CONFIGS = Path(__file__).parents[2] / "configs"
SITES, LIAR, CLAIM = 4, 2, 400_000
SHARE = LimitSettings().largest_share


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def weights_kept(samples: Tensor, largest: float) -> Tensor:
    kept = samples * shares_kept(samples, largest)
    return kept / kept.sum()


# --- the rule


def test_shares_by_hand() -> None:
    # Half of all: 1e12 counts as much as 10 + 20 + 30. Three quarters of all: as much as three times that.
    for largest, counted in ((0.5, 60), (0.75, 180)):
        kept = vector(1e12, 10, 20, 30) * shares_kept(vector(1e12, 10, 20, 30), largest)
        assert torch.allclose(kept, vector(counted, 10, 20, 30))
    # A quarter of all, of four: all alike. A third: 30 and 1e12 count as much as 10 + 20: (10 + 20) / (3 - 2) = 30.
    assert torch.allclose(weights_kept(vector(1e12, 10, 20, 30), 0.25), vector(0.25, 0.25, 0.25, 0.25))
    assert torch.allclose(weights_kept(vector(1e12, 10, 20, 30), 1 / 3), vector(30, 10, 20, 30) / 90)
    assert torch.allclose(weights_kept(vector(5, 90), 0.1), vector(0.5, 0.5))  # too few for a tenth each


def test_who_claims_no_more_than_a_share_keeps_every_bit() -> None:
    assert torch.equal(shares_kept(vector(74, 20, 6), 0.75), torch.ones(3, dtype=torch.float64))
    assert torch.equal(shares_kept(vector(1e12), 0.5), vector(1))  # alone
    assert torch.equal(shares_kept(vector(1e12, 1), 1.0), vector(1, 1))


@given(samples=st.lists(st.integers(1, 10**12), min_size=2, max_size=12), largest=st.floats(0.05, 1))
def test_no_share_is_larger_and_nobody_loses_more_than_needed(samples: list[int], largest: float) -> None:
    claims = vector(*samples)
    kept = shares_kept(claims, largest)
    counted = claims * kept
    share = max(largest, 1 / len(samples))
    assert float(counted.max() / counted.sum()) <= share * (1 + 1e-9)
    assert ((kept > 0) & (kept <= 1)).all()
    assert torch.allclose(counted[kept < 1], counted.max().expand(int((kept < 1).sum())))  # the loudest alone are held


def test_a_held_site_is_held_in_each_row_and_a_row_of_its_own_stays() -> None:
    """Claims of 3,000 and 100: the first counts for 300, a tenth of what it claims, 290 and 10 of the two classes."""
    liar = Update({"head.bias": vector(1, 7), "conv": vector(1)}, [2900, 100])
    honest = Update({"head.bias": vector(0, 0), "conv": vector(0)}, [100, 0])
    merged = class_aware_mean(held_to_share([liar, honest], 0.75), {"head.bias": (0, 1)}, {"head.bias": vector(5, 5)})
    assert torch.allclose(merged["conv"], vector(0.75))
    assert torch.allclose(merged["head.bias"], vector(290 / 390, 7))
    assert [update.counted for update in held_to_share([liar, honest], 0.75)] == [[290, 10], [100, 0]]


# --- runs


def run_of(folder: Path, claim: int, overrides: Mapping[str, Scalar]) -> Path:
    """Four sites with like data, of which one claims so many images of each class that it trains on,."""

    def handle(message: Message, context: Context) -> Message:
        reply = app(message, context)
        instruction = message.content.config_records["instruction"]
        if claim and instruction["site"] == LIAR and "loss" in reply.content.metric_records["numbers"]:
            numbers = dict(reply.content.metric_records["numbers"])
            counts = numbers["class_counts"]
            assert isinstance(counts, list)
            numbers["class_counts"] = [claim * (count > 0) for count in counts]  # type: ignore[misc]
            reply.content = RecordDict({**reply.content, "numbers": MetricRecord(numbers)})
        return reply

    grid = LocalGrid(handle, nodes=SITES, run_config={})  # type: ignore[arg-type]
    own: dict[str, Scalar] = {"federation.sites": SITES, "federation.partition": "iid", **overrides}
    return run_small(small_config("fine_tune", own), folder, grid=grid).path


def distance(run: Path, other: Path) -> float:
    one, two = (load_file(path / "model.safetensors") for path in (run, other))
    return float(torch.cat([(one[name] - two[name]).flatten().double() for name in one]).norm())


def test_a_run_says_who_was_held_and_is_nearer_to_the_honest_one(tmp_path: Path) -> None:
    honest, held_run = run_of(tmp_path / "honest", 0, {}), run_of(tmp_path / "held", CLAIM, {})
    free = run_of(tmp_path / "free", CLAIM, {"limits.largest_share": 1.0})
    assert events(honest, "share_limited") == events(free, "share_limited") == []
    limited = events(held_run, "share_limited")
    assert limited
    assert all(event["sites"] == [LIAR] for event in limited)
    assert distance(held_run, honest) < distance(free, honest)


def test_the_limit_changes_nothing_where_nobody_exceeds_it(tmp_path: Path) -> None:
    with_limit, without = run_of(tmp_path / "with", 0, {}), run_of(tmp_path / "without", 0, {"limits.largest_share": 1})
    assert distance(with_limit, without) == 0


# --- honest sites


@pytest.mark.parametrize("config", ["digits.yaml", "private_digits.yaml", "deployed_digits.yaml", "scanners.yaml"])
def test_shipped_experiments_are_left_alone(config: str) -> None:
    assert set(moved_weights(Experiment(load_config(CONFIGS / config)))) == {0.0}


def test_honest_skewed_sites_are_seldom_held_and_never_by_more_than_the_rest_of_their_share() -> None:
    """The shipped skew, and one that is worse than most hospitals': three partitions of each."""
    for alpha, often in ((1.0, 0), (0.5, 7), (0.1, 40)):
        for sites in (5, 10, 20):
            own: dict[str, Scalar] = {"federation.alpha": alpha, "federation.sites": sites}
            seen = effect_of_limit(CONFIGS / "digits.yaml", own, 3)
            assert seen.tasks == 15
            assert seen.limited <= often
            assert seen.most <= 100 * (1 - SHARE)


def test_the_command_prints_what_was_measured() -> None:
    options = ["--alpha", "0.1", "--sites", "5", "--seeds", "2"]
    done = CliRunner().invoke(command_line, ["bench", "shares", str(CONFIGS / "digits.yaml"), *options])
    assert done.exit_code == 0, done.output
    seen = effect_of_limit(CONFIGS / "digits.yaml", {"federation.alpha": 0.1, "federation.sites": 5}, 2)
    assert f"{seen.limited:.1f} %" in done.output
    assert f"{seen.most:.1f} %" in done.output
