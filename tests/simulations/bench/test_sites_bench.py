"""A federation is measured beside a loop over the very batches that its sites train on."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from small_runs import small_config, small_site
from typer.testing import CliRunner

from client.steps.assignment import Assignment, EpochBatches
from dynammo_core.experiment import Experiment
from dynammo_core.plan import Fit
from dynammo_core.support.terminal import command_line
from simulations.bench.command import bench
from simulations.bench.plain_loop import site_batches


def test_the_loop_takes_the_batches_that_a_site_takes(tmp_path: Path) -> None:
    experiment = Experiment(small_config("joint"))
    step, site = experiment.steps[0], small_site(experiment, 1, tmp_path)
    assert isinstance(step.stage, Fit)
    samples = step.stage.learns_from(site.rehearsal(step.task))
    own = EpochBatches(Assignment(step, site, experiment.build_model(0), None), samples, "images")
    for batch, expected in zip(site_batches(experiment, step, 1, samples), own(0), strict=False):
        assert all(torch.equal(*pair) for pair in zip(batch, expected, strict=True))


def test_the_command_says_how_many_times_the_loop_a_round_takes(tmp_path: Path) -> None:
    app = command_line("dynammo-sim")
    app.add_typer(bench, name="bench")
    config = tmp_path / "small.yaml"
    config.write_text(small_config("joint", {"tasks.sizes": "[2]"}).to_yaml())
    result = CliRunner().invoke(app, ["bench", "sites", str(config), "--count", "2", "--engine", "local"])
    assert result.exit_code == 0, result.output
    assert re.search(r"of a plain loop over the same batches \d+\.\d\d; ratio \d+\.\d\d", result.output)
