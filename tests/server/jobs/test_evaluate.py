"""Testing a run's model at its sites without training: the same numbers as the run's own, and nothing changed."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from hospitals import Hospitals, deployed, make_hospitals, with_images
from small_runs import Stopped, run_small, step_of

from dynammo_core.configuration.config import Config
from dynammo_core.experiment import Experiment
from dynammo_core.support.errors import CheckpointError, RunError
from dynammo_core.wire.announcement import with_new_task
from server.jobs.evaluate import evaluate_run
from simulations.engines.local_grid import LocalGrid

CLASSES = ["0", "1", "2", "3"]
HELD = {"alpha": {"0": 9, "1": 9, "2": 9, "3": 9}, "beta": {"0": 9, "2": 9}, "gamma": {"1": 9}}


@dataclass
class Ended:
    folder: Path
    hospitals: Hospitals
    config: Config[Any]
    path: Path

    @property
    def summary(self) -> dict[str, Any]:
        return dict(json.loads((self.path / "summary.json").read_text()))


def ran(folder: Path) -> Ended:
    hospitals = make_hospitals(folder, HELD)
    config = deployed(list(HELD), CLASSES)
    return Ended(folder, hospitals, config, run_small(config, folder / "runs", grid=hospitals).path)


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """A finished run, not to be changed."""
    return ran(tmp_path_factory.mktemp("evaluated"))


def evaluated(ended: Ended, output: Path, config: Config[Any] | None = None, grid: LocalGrid | None = None) -> Any:
    evaluate_run(grid or ended.hospitals, config or ended.config, ended.path, output)
    return json.loads(output.read_text())


def extended(ended: Ended) -> Config[Any]:
    return with_new_task(ended.config, ["9"], distinct=True)


def contents(folder: Path) -> dict[str, bytes]:
    """All files but the log in which each site notes its answers for itself."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "audit.jsonl"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_the_numbers_are_the_runs_own(ended: Ended, tmp_path: Path) -> None:
    result, summary = evaluated(ended, tmp_path / "one.json"), ended.summary
    assert result["after_task"] == 2
    for key in ("last_accuracy", "mean_class_recall", "worst_site_accuracy"):
        assert result[key.removeprefix("last_")] == summary[key]
    assert [site["accuracy"] for site in result["sites"].values()] == summary["site_accuracies"]
    # one test image of each class that a site holds
    assert {name: site["images"] for name, site in result["sites"].items()} == {"alpha": 4, "beta": 2, "gamma": 1}
    assert result["failures"] == {}
    with (ended.path / "confusion_matrix.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["after_task"] == "2"]
    for name in CLASSES:
        of_class = [row for row in rows if row["true"] == name]
        right = sum(int(row["count"]) for row in of_class if row["predicted"] == name)
        assert result["recall"][name] == round(100 * right / sum(int(row["count"]) for row in of_class), 4)


def test_neither_the_run_nor_a_memory_is_changed(ended: Ended, tmp_path: Path) -> None:
    before = contents(ended.folder)
    evaluated(ended, tmp_path / "one.json")
    assert contents(ended.folder) == before


def test_a_site_that_is_away_is_named_and_the_others_count(ended: Ended, tmp_path: Path) -> None:
    ended.hospitals.away.add("beta")
    try:
        result = evaluated(ended, tmp_path / "one.json")
    finally:
        ended.hospitals.away.clear()
    assert set(result["sites"]) == {"alpha", "gamma"}
    assert result["failures"] == {"beta": "NotConnected, code 0"}
    by_site = dict(zip(HELD, ended.summary["site_accuracies"], strict=True))
    # of 4 and 1 images
    assert result["accuracy"] == round((4 * by_site["alpha"] + by_site["gamma"]) / 5, 4)


def test_with_nobody_there_it_says_where_to_look(ended: Ended, tmp_path: Path) -> None:
    ended.hospitals.away |= set(HELD)
    try:
        with pytest.raises(
            RunError,
            match=r"no site answered\. alpha, beta, gamma \(NotConnected, code 0\): it is not connected: ask whether",
        ):
            evaluated(ended, tmp_path / "one.json", ended.config)
    finally:
        ended.hospitals.away.clear()
    assert not (tmp_path / "one.json").exists()


def test_new_images_count_in_what_is_approved_next(tmp_path: Path) -> None:
    """The same model again gets the recorded answer: the difference of two would tell of the images that came."""
    ended = ran(tmp_path)
    before = evaluated(ended, tmp_path / "one.json")
    with_images(tmp_path, "gamma", {"1": 9, "3": 4, "9": 2})  # 9 is in no task yet, and waits
    assert evaluated(ended, tmp_path / "one.json") == before
    result = evaluated(ended, tmp_path / "one.json", extended(ended))
    assert result["sites"]["gamma"]["images"] == 2
    assert set(result["recall"]) == set(CLASSES)


def test_a_class_without_test_images_has_no_recall(tmp_path: Path) -> None:
    ended = ran(tmp_path)
    for name in HELD:
        with_images(tmp_path, name, {"0": 9})
    assert evaluated(ended, tmp_path / "one.json")["recall"]["1"] is not None  # as recorded
    result = evaluated(ended, tmp_path / "one.json", extended(ended))
    assert result["recall"]["1"] is None
    assert result["recall"]["0"] is not None
    json.dumps(result, allow_nan=False)


def abstaining(message: Message) -> Message:
    """Well-formed, but not what a site does when it is tested."""
    report: dict[str, ArrayRecord | MetricRecord | ConfigRecord]
    report = {"weights": ArrayRecord(), "numbers": MetricRecord(), "report": ConfigRecord({"abstained": True})}
    return Message(RecordDict(report), reply_to=message)


class Forged(Hospitals):
    """The second hospital answers what it likes."""

    def __init__(self, files: dict[str, Path], answer: Callable[[Message], Message]) -> None:
        super().__init__(files)
        self.answer = answer

    def _at_home(self, message: Message, context: Context) -> Message:
        forged = self.names[context.node_id] == "beta"
        return self.answer(message) if forged else super()._at_home(message, context)


def test_a_site_that_abstains_from_a_test_stops_nobody(ended: Ended, tmp_path: Path) -> None:
    result = evaluated(ended, tmp_path / "one.json", grid=Forged(ended.hospitals.files, abstaining))
    assert set(result["sites"]) == {"alpha", "gamma"}


# --- what cannot be evaluated


@pytest.mark.parametrize(
    ("task", "words"), [(0, "the run is in the middle of task 1"), (1, "the run is in the middle of task 2")]
)
def test_a_task_half_learnt_is_not_evaluated(tmp_path: Path, task: int, words: str) -> None:
    hospitals, config = make_hospitals(tmp_path, HELD), deployed(list(HELD), CLASSES)
    last = step_of(Experiment(config), task, "remember").index

    def stop(event: dict[str, Any]) -> None:
        if event["event"] == "step_started" and event["step"] == last:
            raise Stopped

    with pytest.raises(Stopped):
        run_small(config, tmp_path / "runs", grid=hospitals, listeners=[stop])
    (path,) = (tmp_path / "runs").iterdir()
    with pytest.raises(RunError, match=rf"{words}, and its model is half trained.*Evaluate when the task"):
        evaluate_run(hospitals, config, path, tmp_path / "one.json")


def test_a_run_that_never_began_has_no_model(ended: Ended, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"checkpoint .* does not exist"):
        evaluate_run(ended.hospitals, ended.config, tmp_path, tmp_path / "one.json")


def test_between_an_extension_and_its_end_the_old_model_is_tested(ended: Ended, tmp_path: Path) -> None:
    """The configuration may know more than the model: what is not learnt is not asked for."""
    result = evaluated(ended, tmp_path / "one.json", extended(ended))
    assert result["after_task"] == 2
    assert result["accuracy"] == ended.summary["last_accuracy"]
    assert set(result["recall"]) == set(CLASSES)
