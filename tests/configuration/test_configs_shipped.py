"""Every configuration that ships is valid, and goes as far as a plan of steps."""

from __future__ import annotations

from pathlib import Path

import pytest

from dynammo_core.configuration.config import load_config
from dynammo_core.data.datasets import DATASETS
from dynammo_core.experiment import Experiment
from dynammo_core.models.backbones import BACKBONES
from dynammo_core.plan import Action
from dynammo_core.support.errors import DataError
from simulations.comparisons.compare import is_comparison, load_comparison

CONFIGS = Path(__file__).parents[2] / "configs"
SHIPPED = sorted(CONFIGS.rglob("*.y*ml"))
EXPERIMENTS = [path for path in SHIPPED if not is_comparison(path)]
COMPARISONS = [path for path in SHIPPED if is_comparison(path)]
IN_A_DEPENDENCY = {"digits"}
"""Data sets that are on every machine."""


def named(path: Path) -> str:
    return path.relative_to(CONFIGS).as_posix()


def test_what_the_readme_and_scripts_name_is_there() -> None:
    assert {"digits.yaml", "fashion_mnist.yaml"} <= {named(path) for path in EXPERIMENTS}
    assert {named(path).split("/")[0] for path in COMPARISONS} == {"compare", "paper"}


@pytest.mark.parametrize("path", EXPERIMENTS, ids=named)
def test_an_experiment_names_what_exists(path: Path) -> None:
    config = load_config(path)
    assert config.data.dataset in DATASETS
    assert not BACKBONES.problem(config.backbone.name)


@pytest.mark.parametrize("path", EXPERIMENTS, ids=named)
def test_an_experiment_makes_a_plan(path: Path) -> None:
    config = load_config(path)
    experiment = Experiment(config)
    try:
        _ = experiment.dataset
    except DataError as error:
        assert config.data.dataset not in IN_A_DEPENDENCY
        pytest.skip(f"the data are not on this machine: {error}")
    assert len(experiment.partition) == config.federation.sites
    evaluations = [step.task for step in experiment.steps if step.stage.action is Action.EVALUATE]
    assert evaluations == list(range(len(experiment.stream)))


@pytest.mark.parametrize("path", COMPARISONS, ids=named)
def test_each_row_of_a_comparison_is_an_experiment_of_its_own(path: Path) -> None:
    cells = load_comparison(path).cells
    for setting in {cell.setting for cell in cells}:  # a bound may be the same under several
        own = [cell.config.content_hash for cell in cells if cell.setting == setting]
        assert len(set(own)) == len(own) > 1
