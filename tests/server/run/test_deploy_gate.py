"""A model that loses more than its bounds allow is held back until a person releases it."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from small_runs import events, run_small, small_config
from typer.testing import CliRunner

from dynammo_core.deployed.model_files import ModelFiles
from dynammo_core.support.errors import ConfigError, RunError
from dynammo_core.support.processes import account
from server.cli import app
from server.report.model_card import model_card
from server.run.deploy_gate import Broken, broken_bounds
from server.run_directory.advice import held_words
from server.run_directory.flower_run import FLOWER_RUN
from server.watch.status import RunStatus

NO_LOSS = {"retention": 0.0, "worst_site": 0.0, "class_recall": 0.0}


def test_losses_are_counted_by_class_and_site() -> None:
    """Of ten images each of two known classes: 9 and 9 right at site 0, 10 and 10 at site 1; then 9, 7 and 10, 4."""
    before, after = np.zeros((2, 3, 3, 3), np.int64)
    for site, right in enumerate(((9, 9), (10, 10))):
        for label, number in enumerate(right):
            before[site, label, :2] = [number, 10 - number] if label == 0 else [10 - number, number]
    for site, right in enumerate(((9, 7), (10, 4))):
        for label, number in enumerate(right):
            after[site, label, label] = number
            after[site, label, 2] = 10 - number
    before[2, 0, 0] = 10  # site 2 did not answer the second test, so it is not compared
    # 38 of 40, then 30 of 40; at site 1 20 of 20, then 14 of 20; of class 1 19 of 20, then 11 of 20
    expected = [
        Broken("retention", 20.0, 0.0, 1),
        Broken("worst_site", 30.0, 0.0, 1),
        Broken("class_recall", 40.0, 0.0, 1, 1),
    ]
    assert broken_bounds(before, after, [0, 1], NO_LOSS) == expected
    assert broken_bounds(before, after, [0, 1], {"retention": 20.0, "class_recall": 39.9}) == [
        Broken("class_recall", 40.0, 39.9, 1, 1)
    ]
    assert broken_bounds(before, before, [0, 1], NO_LOSS) == []
    nothing = broken_bounds(before, np.zeros_like(after), [0, 1], NO_LOSS)
    assert nothing == [Broken(name, None, 0.0) for name in NO_LOSS]
    assert "no site answered both tests" in held_words({"task": 1, "deployed": 0, "broken": [vars(nothing[0])]}, ())
    summed = [counts.sum(axis=0, keepdims=True) for counts in (before[:2], after[:2])]
    assert broken_bounds(*summed, [0, 1], {"class_recall": 0.0}) == [Broken("class_recall", 40.0, 0.0, None, 1)]


def test_a_site_that_lies_of_its_images_does_not_decide_alone() -> None:
    """Recall falls from 90 to 40 % at two sites of 200 images; a third says that all of its images are right."""

    def answered(*right_and_wrong: tuple[int, int]) -> np.ndarray:
        return np.stack([np.array([[right, wrong], [wrong, right]]) for right, wrong in right_and_wrong])

    bounds = {"retention": 3.0, "class_recall": 5.0}
    before, after = (answered(*honest, (250_000, 0)) for honest in ([(90, 10)] * 2, [(40, 60)] * 2))
    assert broken_bounds(before, after, [0, 1], bounds) == []
    assert [one.points for one in broken_bounds(before, after, [0, 1], bounds, 0.75)] == [12.5, 12.5]
    few = answered((90, 10), (1, 0)), answered((95, 5), (0, 1))
    assert broken_bounds(*few, [0, 1], {"worst_site": 2.0}) == []


def after_task(run: Path) -> int:
    return int(json.loads((run / "model.json").read_text())["lineage"]["after_task"])


def test_a_model_that_forgets_is_held_back_until_it_is_released(tmp_path: Path) -> None:
    config = small_config("fine_tune", {f"gate.{name}": bound for name, bound in NO_LOSS.items()})
    stopping = config.model_copy(update={"gate": config.gate.model_copy(update={"broken": "stop"})})
    with pytest.raises(RunError, match=r"that after task 1 stays deployed.*`dynammo-server release /"):
        run_small(stopping, tmp_path)
    (run,) = tmp_path.iterdir()
    run_small(config, tmp_path, resume=run)  # to go on without it is a decision too
    assert json.loads((run / "summary.json").read_text())["status"] == "completed"
    (judged,) = events(run, "gate_judged")
    assert [one["bound"] for one in judged["broken"]] == list(NO_LOSS)
    held = held_words(judged, ())
    assert RunStatus.read(run).progress.held == held
    assert f"{judged['broken'][2]['label']} lost {judged['broken'][2]['points']:.1f} points (class_recall: 0)" in held

    def card() -> str:
        return model_card(run, ModelFiles.read(run).facts, file="m.onnx", format_name="onnx", sha256="ab")

    first = json.loads((run / "models" / "task-01" / "summary.json").read_text())
    assert after_task(run) == 1
    assert f"| Accuracy | {first['last_accuracy']:.1f} |" in card()
    assert f"| {held} |" in card().replace("\\_", "_")
    (run / FLOWER_RUN).write_text(json.dumps({"consortium": str(tmp_path)}))  # as that of a run among hospitals
    release = shlex.split(RunStatus.read(run).release_command)[1:]
    for words, task in ((release, 2), (["rollback", str(run), "--task", "1"], 1)):
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 0, done.output
        assert after_task(run) == task
    assert RunStatus.read(run).progress.held == ""
    assert f"{account()} released the model after task 2 |" in card()
    assert events(run, "released")[0]["by"] == account()


def test_without_bounds_every_model_is_deployed(tmp_path: Path) -> None:
    run = run_small(small_config("fine_tune"), tmp_path).path
    assert (after_task(run), events(run, "gate_judged")) == (2, [])


def test_a_site_cannot_be_bounded_where_the_server_knows_sums_alone() -> None:
    bound = {"gate.worst_site": 1.0, "federation.secure_aggregation": True}
    with pytest.raises(ConfigError, match="no site's accuracy; bound retention or class_recall"):
        small_config("dynammo", bound)
