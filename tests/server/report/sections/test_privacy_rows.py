"""What pages say of a run's promise: never an epsilon without what it means."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dynammo_core.configuration.config import load_config
from server.report.sections.privacy_rows import privacy_rows
from server.run_directory.run_files import Json, RunFiles
from simulations.engines.engines import run_local

ROOT = Path(__file__).parents[4]
SMALL: dict[str, str | int] = {
    "tasks.sizes": "[2]",
    "tasks.class_order": "[0, 1]",
    "backbone.name": "small_cnn",
    "backbone.weights": "random",
    "data.image_size": 16,
    "method.balance.rounds": 1,
}


def files(summary: Json, **federation: Any) -> RunFiles:
    return RunFiles({"federation": federation}, summary, {}, [], 0, [], {})


def test_private_run_says_all_that_its_epsilon_means(tmp_path: Path) -> None:
    config = load_config(ROOT / "configs/private_digits.yaml", SMALL)
    run = RunFiles.read(run_local(config, tmp_path, None, lambda _: None))
    rows = dict(privacy_rows(run))
    spent = run.summary["privacy"]["epsilon"]
    assert 0 < spent <= config.privacy.epsilon
    assert rows["Epsilon, spent"] == f"{spent:.2f} of {config.privacy.epsilon:g}, at the site that spent most"
    assert rows["Delta"] == f"{config.privacy.delta:g}"
    assert rows["Of"] == "one training image of one site more or less"
    assert "Gaussian noise" in rows["Mechanism"]
    assert "dp-accounting" in rows["Accountant"]


@pytest.mark.parametrize(("secure", "seen"), [(False, "each site's answers"), (True, "only sums over sites")])
def test_run_without_noise_promises_none(secure: bool, seen: str) -> None:
    rows = dict(privacy_rows(files({"privacy": None}, secure_aggregation=secure)))
    assert rows["Differential privacy"].startswith("none")
    assert rows["The server sees"].startswith(seen)


def test_summary_that_says_nothing_of_it_gives_no_rows() -> None:
    assert privacy_rows(files({})) == []
