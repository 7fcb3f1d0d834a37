"""Run directories as rows and settings: named after the keys in which they differ, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_runs import small_config

from dynammo_core.configuration.config import Scalar
from dynammo_core.support.errors import RunError
from server.run_directory.directory import RunDirectory
from simulations.comparisons.run_groups import groups_of


def write_run(runs: Path, method: str, overrides: dict[str, Scalar], status: str = "completed") -> Path:
    directory = RunDirectory.create(runs, small_config(method, overrides))
    directory.write_json("summary.json", {"status": status})
    return directory.path


def test_rows_are_methods_and_settings_what_else_differs(tmp_path: Path) -> None:
    directories = [
        write_run(tmp_path, method, {"seed": seed, "federation.sites": sites, **own})
        for sites in (1, 5)
        for method, own in (("dynammo", {}), ("dynammo", {"method.adapters": False}), ("replay", {}))
        for seed in (2, 1)
    ]
    groups, unfinished = groups_of(directories)
    assert unfinished == []
    assert [(group.setting, group.row, [result.seed for result in group.results]) for group in groups] == [
        (setting, row, [1, 2])
        for setting in ("federation.sites=1", "federation.sites=5")
        for row in ("dynammo (adapters=True)", "dynammo (adapters=False)", "replay")
    ]
    assert json.loads((groups[0].results[0].directory / "summary.json").read_text()) == groups[0].results[0].summary
    assert [group.method.name for group in groups[:3]] == ["dynammo", "dynammo", "replay"]


def test_runs_that_differ_in_nothing_else_are_seeds_of_one_row(tmp_path: Path) -> None:
    directories = [write_run(tmp_path, "replay", {"seed": seed, "name": f"run{seed}"}) for seed in (1, 2, 3)]
    directories.append(write_run(tmp_path, "replay", {"seed": 4}, status="running"))
    (group,), unfinished = groups_of(directories)
    assert (group.setting, group.row, [result.seed for result in group.results]) == ("", "replay", [1, 2, 3])
    assert unfinished == [str(directories[3])]


def test_the_same_experiment_twice_is_refused(tmp_path: Path) -> None:
    again = [write_run(tmp_path / folder, "replay", {}) for folder in ("one", "other")]
    with pytest.raises(RunError, match=r"one.*other.*same experiment"):
        groups_of(again)


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is not a run directory"):
        groups_of([tmp_path])
