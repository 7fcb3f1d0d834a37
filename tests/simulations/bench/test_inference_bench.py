"""The latency of answers is that of the model named: one pass whatever the number of tasks, beside a pass for each."""

from __future__ import annotations

from small_runs import small_config
from typer.testing import CliRunner

from simulations.bench.inference import latencies
from simulations.cli import app


def test_a_pass_for_each_task_takes_longer_and_one_pass_does_not() -> None:
    seconds = latencies(small_config(overrides={"data.image_size": 64}), [1, 8], [16], repeats=7)
    kinds = {"as trained", "folded", "acl, folded", "ONNX Runtime"}
    assert set(seconds) == {(kind, tasks, 16) for kind in kinds for tasks in (1, 8)}
    # Eight passes through all but the prefix against one: about six times as long; two leaves room for a busy machine.
    assert seconds["acl, folded", 8, 16] > 2 * seconds["folded", 8, 16]
    assert seconds["folded", 8, 16] < 2 * seconds["folded", 1, 16]


def test_an_unknown_config_is_named() -> None:
    result = CliRunner().invoke(app, ["bench", "inference", "nothing.yaml"])
    assert result.exit_code == 1
    assert "no configuration file 'nothing.yaml'" in " ".join(result.stderr.split())
