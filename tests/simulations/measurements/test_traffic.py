"""The table of bytes: what is computed is right by hand, and each row is less than the one before."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path

import pytest
from rich.console import Console
from small_runs import SITES, Finished, small_config
from typer.testing import CliRunner

from dynammo_core.support.errors import DynammoError
from simulations.cli import app
from simulations.comparisons.progress import run_under_display
from simulations.measurements import commands
from simulations.measurements.traffic import plan, rows, whole_network, with_method

pytestmark = pytest.mark.usefixtures("small_pages")
DIGITS = Path(__file__).parents[3] / "configs" / "digits.yaml"


def test_each_row_is_less_than_the_one_before(finished: Finished, tmp_path: Path) -> None:
    cells = plan(small_config(), [])
    assert run_under_display(cells, tmp_path, Console(quiet=True), workers=1) == {}
    whole, sent, once, half, byte, both = rows(cells, tmp_path, 1000)
    assert (whole["kind"], whole["up"], whole["down"], whole["accuracy"]) == ("the whole network", 1000, 1000, None)
    assert [row["kind"] for row in (sent, once, half, byte, both)] == [
        *("what dynammo sends", "once per change"),
        *("float16", "int8", "int8_both"),
    ]
    totals = [row["up"] + row["down"] for row in (sent, once, half, byte, both)]
    assert totals == sorted(set(totals), reverse=True)
    assert [row["times_fewer"] for row in (sent, once)] == [2000 / total for total in totals[:2]]
    assert (half["up"], byte["down"]) == (once["up"] / 2, half["down"])
    assert byte["up"] == both["up"] < half["up"]
    summary = json.loads((finished("dynammo").path / "summary.json").read_text())
    assert (once["up"] * SITES, once["down"] * SITES) == (summary["bytes_up"], summary["bytes_down"])
    assert once["accuracy"] == sent["accuracy"] == summary["last_accuracy"]


def test_the_whole_network_is_counted_by_hand() -> None:
    # Convolutions of 3x3 from 3 to 8, to 16, to 32 and to 64 channels, each with a batch norm of four vectors; three
    # heads of 64 + 1 by three: of two tasks, and the auxiliary one. Six rounds train, each both ways: in each of two
    # tasks one of adapting and two of balancing.
    whole, channels = whole_network(small_config()), (3, 8, 16, 32, 64)
    network = sum(9 * a * b + 4 * b for a, b in pairwise(channels)) + 3 * 3 * 65
    assert whole == 6 * 4 * network
    kept = small_config(overrides={"method.adapt.keep": "best", "method.balance.keep": "best"})
    assert whole_network(kept) == whole  # what tests a round does not train


def test_another_method_keeps_what_it_shares() -> None:
    config = small_config()
    texts = ("acl", "dynammo,adapters=false", "fine_tune,train.rounds=9")
    acl, bare, tuned = (with_method(config, text) for text in texts)
    assert (acl.method.name, acl.method.adapt, acl.method.balance) == (
        "acl",
        config.method.adapt,
        config.method.balance,
    )
    assert bare.method == config.method.model_copy(update={"adapters": False})
    assert (tuned.method.name, tuned.method.train.rounds) == ("fine_tune", 9)
    assert tuned.federation == config.federation
    for wrong in ("nothing", "ridge,nothing=1", "ridge,multi_scale"):
        with pytest.raises(DynammoError):
            with_method(config, wrong)


def test_the_command_prints_a_part_for_each_method(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(commands, "console", Console(width=120))
    overrides = ("backbone.name=small_cnn", "backbone.weights=random", "data.image_size=16", "data.train_per_class=8")
    overrides += ("method.name=streaming_ridge", "federation.sites=2", "tasks.sizes=[2, 2]", "data.test_per_class=4")
    words = [word for override in overrides for word in ("--set", override)]
    more = ("--beside", "ridge", "--runs", str(tmp_path), "--workers", "1")
    result = CliRunner().invoke(app, ["bench", "bytes", str(DIGITS), *words, *more])
    assert result.exit_code == 0, result.output
    printed = [re.split(r" {2,}", line.strip()) for line in result.stdout.splitlines()]
    sent = [row for row in printed if len(row) > 4]
    kinds = ("once per change", "float16", "int8", "int8_both")
    assert [row[0] for row in sent] == [
        *("what travels", "the whole network", "what streaming_ridge sends", *kinds, "what ridge sends", *kinds)
    ]
    assert [row[0] for row in printed if row[0].startswith("method")] == ["method: streaming_ridge", "method: ridge"]
    by_kind = {row[0]: row for row in sent}
    assert by_kind["what streaming_ridge sends"][-1] == by_kind["what ridge sends"][-1] == "+0.00"
