"""What recording costs is measured on real steps: each answer of the first task, once and again."""

from __future__ import annotations

from small_runs import small_config
from typer.testing import CliRunner

from dynammo_core.experiment import Experiment
from simulations.bench.answers import recorded_task
from simulations.cli import app


def test_every_step_of_the_first_task_is_recorded_with_little_beside_it() -> None:
    experiment = Experiment(small_config("dynammo", {"federation.sites": 1}))
    costs = recorded_task(experiment)
    assert len(costs) == sum(step.task == 0 for step in experiment.steps)
    assert all(cost.answer < cost.file < cost.answer + 10_000 for cost in costs)
    assert all(min(cost.step, cost.recorded, cost.again) > 0 for cost in costs)


def test_the_command_says_what_it_measures() -> None:
    said = CliRunner().invoke(app, ["bench", "answers", "--help"]).output
    assert "record each encrypted answer" in " ".join(said.split())
