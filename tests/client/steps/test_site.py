"""What a site holds in each task where classes reach the sites at different times."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import instruction, run_id, run_small, small_config, small_site

from client.state.feature_files import FeatureFiles
from client.steps.actions import answer
from dynammo_core.configuration.config import Config
from dynammo_core.data.samples import Samples
from dynammo_core.experiment import Experiment
from dynammo_core.wire.protocol import Report

LATE = {
    "tasks.sizes": "[2, 1, 1]",
    "data.train_per_class": 12,
    "data.test_per_class": 4,
    "federation.partition": "iid",
    "federation.arrival": "asynchronous",
    "federation.max_delay": 2,
}
# By task, for each of the three sites: what the seed of the small runs draws. The stream is (0, 1), (2), (3).
NEW = [[(0, 1), (), (2, 3)], [(1,), (0,), (2, 3)], [(0,), (2,), (1, 3)]]
SEEN = [[{0, 1}, {0, 1}, {0, 1, 2, 3}], [{1}, {0, 1}, {0, 1, 2, 3}], [{0}, {0, 2}, {0, 1, 2, 3}]]


def late_config(method: str) -> Config[Any]:
    return small_config(method, LATE)


def answers(method: str, workspace: Path) -> dict[tuple[int, str, int], Report]:
    """By task, stage and site: what each site answers in the first round of every stage."""
    experiment = Experiment(late_config(method))
    return {
        (step.task, step.stage.name, index): answer(
            instruction(experiment, step, index, workspace), small_site(experiment, index, workspace)
        )
        for step in experiment.steps
        if step.round == 0
        for index in range(3)
    }


def held(report: Report) -> set[int]:
    """The classes of which an answer counts images."""
    return {label for label, count in enumerate(report.class_counts) if count}


def test_classes_reach_the_sites_in_different_tasks() -> None:
    experiment = Experiment(late_config("replay"))
    assert experiment.stream.tasks == ((0, 1), (2,), (3,))
    for index in range(3):
        for task in range(3):
            assert experiment.arrivals.new(index, task) == NEW[index][task]
            assert set(experiment.arrivals.seen(index, task)) == SEEN[index][task]


def test_a_late_class_is_trained_whole_when_it_comes_and_rehearsed_from_then_on(tmp_path: Path) -> None:
    experiment, reports = Experiment(late_config("replay")), answers("replay", tmp_path)
    for (task, stage, index), report in reports.items():
        if stage in ("train", "remember"):
            assert held(report) == SEEN[index][task], (task, stage, index)
    own = small_site(experiment, 1, tmp_path).train_images((0,))
    assert reports[1, "train", 1].class_counts[0] == len(own) > 2
    # 24 exemplars / 3 sites / 2 classes held = 4, then / 4 classes held = 2
    assert reports[1, "remember", 1].class_counts[:2] == [min(4, len(own)), 4]
    assert reports[2, "train", 1].class_counts[0] == min(4, len(own))
    assert reports[2, "remember", 1].class_counts[:4] == [2] * 4


def test_methods_that_see_only_what_is_new_or_all_so_far_follow_the_sites_arrivals(tmp_path: Path) -> None:
    fine_tune, joint = answers("fine_tune", tmp_path / "new"), answers("joint", tmp_path / "all")
    for index in range(3):
        for task in range(3):
            new, seen = fine_tune[task, "train", index], joint[task, "train", index]
            assert new.abstained == (not NEW[index][task])
            assert new.abstained or held(new) == set(NEW[index][task])
            assert held(seen) == SEEN[index][task]


def test_dynammo_balances_late_classes_but_tunes_adapters_only_on_a_tasks_own(tmp_path: Path) -> None:
    reports = answers("dynammo", tmp_path)
    for index in range(3):
        for task in range(3):
            assert held(reports[task, "balance", index]) == SEEN[index][task]
            assert held(reports[task, "remember", index]) == SEEN[index][task]
    # in the second task the first site has nothing new, the second one only a class of the first task
    assert [reports[1, "adapt", index].abstained for index in range(3)] == [True, True, False]
    assert [held(reports[2, "adapt", index]) for index in range(3)] == [{0, 1, 2, 3}] * 3


@pytest.mark.parametrize("method", ["dynammo", "replay"])
def test_tests_ask_for_every_class_of_the_stream(tmp_path: Path, method: str) -> None:
    reports = answers(method, tmp_path)
    assert [held(reports[task, "evaluate", 1]) for task in range(3)] == [{0, 1}, {0, 1, 2}, {0, 1, 2, 3}]


@pytest.mark.parametrize("method", ["dynammo", "replay"])
def test_an_asynchronous_run_goes_through(tmp_path: Path, method: str) -> None:
    config = late_config(method)
    run = run_small(config, tmp_path).path
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["status"], summary["tasks"]) == ("completed", 3)
    assert summary["last_accuracy"] > 25  # of four classes, by chance
    for index in range(3):
        site = small_site(Experiment(config), index, run / "sites", run=run_id(run))
        memory = site.memory()
        assert memory.task == 2
        assert memory.samples.class_counts(4) == [min(2, len(site.train_images((label,)))) for label in range(4)]


def test_what_was_made_of_one_image_of_a_record_is_not_taken_for_that_of_another(tmp_path: Path) -> None:
    experiment = Experiment(small_config())

    def made(site: int, pixel: int) -> float:
        image = torch.full((1, 1, 16, 16), pixel, dtype=torch.uint8)
        samples = Samples(image, torch.zeros(1, dtype=torch.int64), ("patient",))
        return small_site(experiment, site, tmp_path).once(("features",), samples, lambda: torch.tensor(pixel)).item()

    # A patient's image for training, one for testing, and one at another site.
    assert [made(0, 1), made(0, 2), made(1, 3), made(0, 1)] == [1, 2, 3, 1]


@pytest.mark.parametrize("what", ["features", "statistics"])
def test_what_other_weights_of_a_network_made_is_not_taken_from_the_disk(tmp_path: Path, what: str) -> None:
    """The name of the network is the same, and so are the images; the seed draws other weights."""
    files = FeatureFiles(tmp_path / "files", 2**20, run="run", site="site-000", key=bytes(range(32)))
    samples = Samples(torch.zeros(1, 1, 16, 16, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64), ("patient",))

    def made(seed: int, number: float) -> float:
        experiment = Experiment(small_config(overrides={"seed": seed}))
        site = replace(small_site(experiment, 0, tmp_path / str(seed)), features=files)
        network = experiment.build_model(0).network
        return site.once((network, what), samples, lambda: torch.tensor([number])).item()

    assert [made(1, 1.0), made(2, 2.0), made(1, 3.0)] == [1.0, 2.0, 1.0]
