"""Every configuration that ships is valid, and goes as far as a plan of steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dynammo_core.config import Config, load_config
from dynammo_core.data.datasets import DATASETS
from dynammo_core.errors import DataError
from dynammo_core.experiment import Experiment
from dynammo_core.models.backbones import BACKBONES
from dynammo_core.plan import Action

ROOT = Path(__file__).parent.parent
SHIPPED = sorted((ROOT / "configs").rglob("*.y*ml"))
NAMES = [path.relative_to(ROOT / "configs").as_posix() for path in SHIPPED]
IN_A_DEPENDENCY = {"digits"}
"""Data sets that are on every machine."""


def test_the_demo_ships() -> None:
    assert "digits.yaml" in NAMES


@pytest.mark.parametrize("path", SHIPPED, ids=NAMES)
def test_it_is_valid_and_names_what_exists(path: Path) -> None:
    config = load_config(path)
    assert config.data.dataset in DATASETS
    assert config.backbone.name in BACKBONES


@pytest.mark.parametrize("path", SHIPPED, ids=NAMES)
def test_it_makes_a_plan_that_ends_in_an_evaluation(path: Path) -> None:
    experiment = open_experiment(load_config(path))
    steps = experiment.steps
    assert [step.index for step in steps] == list(range(len(steps)))
    evaluations = [step.task for step in steps if step.stage.action is Action.EVALUATE]
    assert evaluations == list(range(len(experiment.stream)))
    assert steps[-1].stage.action is Action.EVALUATE
    assert len(experiment.partition) == experiment.config.federation.sites


def open_experiment(config: Config[Any]) -> Experiment:
    experiment = Experiment(config)
    try:
        _ = experiment.dataset
    except DataError as error:
        if config.data.dataset in IN_A_DEPENDENCY:
            raise
        pytest.skip(f"the data are not on this machine: {error}")
    return experiment
