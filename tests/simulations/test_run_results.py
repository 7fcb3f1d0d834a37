"""The tables of a run, against its configuration and its files."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import yaml
from small_runs import SITES, Finished, small_settings

from dynammo_core.deployed.predictor import Predictor
from simulations import RunResults, run


def test_each_table_holds_plain_records_of_one_kind(finished: Finished) -> None:
    results = RunResults(finished("dynammo").path)
    for name in ("after_tasks", "accuracies", "confusions", "images", "rounds"):
        table = getattr(results, name)
        (columns,) = {tuple(row) for row in table}
        kinds = {type(value) for row in table for value in row.values()}
        assert kinds <= {str, int, float, type(None)}, (name, kinds)
        csv.DictWriter(io.StringIO(), columns).writerows(table)
    assert Path(results) == results.directory


def test_tables_agree_with_the_run(finished: Finished) -> None:
    done = finished("dynammo")
    results = RunResults(done.path)
    assert results.summary["last_accuracy"] == results.after_tasks[-1]["accuracy"]
    last = [row for row in results.accuracies if row["after_task"] == 2]
    right, total = (sum(row[key] for row in last) for key in ("correct", "total"))
    assert round(100 * right / total, 4) == results.summary["last_accuracy"]
    assert total == results.after_tasks[-1]["test_images"] == sum(row["test"] for row in results.images)
    assert sum(row["count"] for row in results.confusions if row["after_task"] == 2) == total
    labels = done.experiment.dataset.train.labels
    held = [np.bincount(labels[part], minlength=4)[:4] for part in done.experiment.partition.train]
    for row in results.images:  # a site with one image of a task may abstain
        there = held[int(row["site"].removeprefix("site "))][int(row["class"])]
        assert row["training"] == there or (there == 1 and row["training"] == 0), row
    assert {row["site"] for row in results.rounds} == {f"site {site}" for site in range(SITES)}
    trained = [row["loss"] is not None for row in results.rounds if row["samples"]]
    assert trained == [row["stage"] in ("adapt", "balance") for row in results.rounds if row["samples"]]
    assert sum(row["bytes_up"] for row in results.rounds) == results.summary["bytes_up"]


def test_texts_do_for_paths_as_in_a_notebook(tmp_path: Path) -> None:
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump({**small_settings(), "tasks": {"sizes": [2]}}))
    results = run(str(file), runs=str(tmp_path / "runs"), track="tensorboard")
    assert results.directory.parent == tmp_path / "runs"
    assert (results.directory / "tensorboard").is_dir()
    assert RunResults(str(results.directory)).summary == results.summary  # type: ignore[arg-type]
    assert Predictor.load(str(results.directory)).classes == ("0", "1")
