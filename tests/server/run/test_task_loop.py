"""The whole road from configuration to results: stopped, resumed, with sites that fail or have nothing to learn."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from safetensors import safe_open
from safetensors.torch import load_file
from small_runs import (
    ALL_METHODS,
    SITES,
    Finished,
    Outcome,
    StopAt,
    Stopped,
    Wire,
    events,
    hospital_config,
    run_small,
    small_config,
    step_of,
    write_hospitals,
)

from client.app import app
from dynammo_core.configuration.config import Config, Scalar
from dynammo_core.experiment import Experiment
from dynammo_core.plan import LearningStage
from dynammo_core.support.errors import CheckpointError, ConfigError, DataError, RunError
from server.run.results import TESTED
from server.run_directory.run_files import RunFiles
from simulations.engines.local_grid import LocalGrid

Event = dict[str, Any]
every_method = pytest.mark.parametrize("method", ALL_METHODS)
SHORT = "streaming_ridge"
"""The method of fewest and cheapest steps, where it does not matter which one runs."""
both_kinds = pytest.mark.parametrize("method", ["dynammo", "replay"])


class Reversed(LocalGrid):
    """Lets the last node that was asked answer first."""

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        return super().pull_messages(list(message_ids)[-1:])


def failing_grid(fails: Callable[[int, int], bool]) -> LocalGrid:
    """Sites that answer with an error where `fails(site, step)`."""

    def handle(message: Message, context: Context) -> Message:
        asked = message.content.config_records["instruction"]
        if fails(int(asked["site"]), int(asked["step"])):  # type: ignore[arg-type]
            return Message(Error(102, "DataError"), reply_to=message)
        return app(message, context)

    return LocalGrid(handle, nodes=SITES, run_config={})  # type: ignore[arg-type]


# --- what one run says and does


@every_method
def test_a_run_announces_its_plan_and_does_each_step_of_it(finished: Finished, method: str) -> None:
    run = finished(method)
    (start,) = events(run.path, "run_started")
    assert start["plan"] == [step.as_fields() for step in run.experiment.steps]
    assert start["tasks"] == [["0", "1"], ["2", "3"]]
    assert (start["sites"], start["method"], start["resumed_at"]) == (SITES, method, 0)
    for kind in ("step_started", "step_finished"):
        assert [event["step"] for event in events(run.path, kind)] == list(range(len(run.experiment.steps)))
    answers = [(event["step"], event["answered"]) for event in events(run.path, "answers")]
    assert answers == [(step.index, n) for step in run.experiment.steps for n in (1, 2, 3)]
    tests = events(run.path, "task_evaluated")
    assert [event["task"] for event in tests] == [0, 1]
    assert [event["accuracy"] for event in tests] == run.summary["accuracy_after_tasks"]
    assert [event["mean_class_recall"] for event in tests] == run.summary["mean_class_recall_after_tasks"]
    for key in ("leading_metric", "site_accuracies", "site_mean_class_recalls"):
        assert tests[-1][key] == run.summary[key]
    (end,) = events(run.path, "run_finished")
    assert end["summary"].items() >= run.summary.items()


def test_the_log_tells_how_many_training_images_of_each_class_each_site_has(finished: Finished) -> None:
    for method in ("dynammo", "replay", SHORT):
        run = finished(method)
        labels, parts = run.experiment.dataset.train.labels, run.experiment.partition.train
        told = RunFiles.read(run.path).training_images
        for site, part in enumerate(parts):
            held = np.bincount(labels[part], minlength=4)[:4].reshape(2, 2)
            for task, counts in enumerate(held):
                if counts.sum() > 1:  # a site with fewer abstains from most stages
                    own = told[str(site)][2 * task : 2 * task + 2]
                    assert own.tolist() == counts.tolist(), (method, site, task)


@every_method
def test_bytes_are_those_of_the_answers_that_came(finished: Finished, method: str) -> None:
    run = finished(method)
    steps = events(run.path, "step_finished")
    assert sum(step["bytes_up"] for step in steps) == run.summary["bytes_up"]
    assert sum(step["bytes_down"] for step in steps) == run.summary["bytes_down"]
    for step in steps:
        assert step["bytes_up"] == sum(site["bytes_up"] for site in step["sites"])
        assert step["bytes_down"] == sum(site["bytes_down"] for site in step["sites"])


def test_bytes_of_adapting_are_those_of_the_adapters_and_their_head(finished: Finished) -> None:
    """Channels c = 8, 16, 32: two 3x3 convolutions, two batch norms with statistics, alpha; a head of 65 x 3."""
    float32 = 4
    one = float32 * (sum(2 * 9 * c * c + 2 * 4 * c + 1 for c in (8, 16, 32)) + 65 * 3)
    first = events(finished("dynammo").path, "step_finished")[0]
    assert [site["bytes_up"] for site in first["sites"]] == [one, 0, one]  # site 1 abstains
    assert first["bytes_down"] == SITES * one


def test_methods_forget_or_do_not_as_they_should(finished: Finished) -> None:
    """What the smallest run shows already: fine-tuning loses the first task, rehearsal does not lose all of it."""
    recall = {}
    for method in ALL_METHODS:
        after_one, after_two = finished(method).summary["accuracy_after_tasks"]
        assert after_one > 75
        recall[method] = after_two
    assert recall["fine_tune"] <= 50  # it knows at most one task of two
    assert min(recall["dynammo"], recall["replay"], recall["joint"]) > 55


def test_five_tasks_leave_a_network_that_has_grown_by_heads_alone(tmp_path: Path) -> None:
    config = small_config(overrides={"tasks.sizes": 2, "federation.sites": 2, "federation.partition": "iid"})
    run = run_small(config, tmp_path)
    summary = Outcome.of(run.path).summary
    # Adapt, two rounds of balance, remember, evaluate; from the second task on the merged statistics as well.
    assert (summary["tasks"], summary["rounds"]) == (5, 5 + 4 * 6)
    assert len(summary["accuracy_after_tasks"]) == 5
    assert 100 / 5 < summary["last_accuracy"] < 100  # the last task alone would be a fifth
    names = load_file(run.path / "model.safetensors")
    assert {name.split(".")[1] for name in names if name.startswith("heads.")} == {f"task{task}" for task in range(5)}
    adapters = {name.removeprefix("extractor.adapters.") for name in names if "adapters" in name}
    assert {name.split(".")[0] for name in adapters} == {"0", "1", "2"}  # one set, an adapter before each of 3 stages


@pytest.mark.parametrize(("method", "rounds"), [("dynammo", "method.adapt.rounds"), ("replay", "method.train.rounds")])
def test_with_one_site_each_round_begins_where_the_last_one_ended(tmp_path: Path, method: str, rounds: str) -> None:
    """Federation adds nothing to a single site: bit for bit what it sent comes back, until the stage is over."""
    config = small_config(method, {"federation.sites": 1, rounds: 2})
    wire = Wire()
    run_small(config, tmp_path, grid=LocalGrid(wire, nodes=1, run_config={}))  # type: ignore[arg-type]
    continued = 0
    for step, (_, reply), (message, _) in zip(Experiment(config).steps, wire.handled, wire.handled[1:], strict=False):
        if step.task == 1 and not step.is_last_round:  # of the first task's auxiliary head nobody holds the "others"
            sent, returned = (content.array_records["weights"] for content in (reply.content, message.content))
            assert sent
            assert all(returned[name].data == array.data for name, array in sent.items())
            continued += 1
    assert continued == (2 if method == "dynammo" else 1)  # adapting and balancing, or training, of two rounds each


# --- what must change nothing


@pytest.mark.parametrize(
    ("method", "nodes"), [("replay", 1), ("dynammo", 4), pytest.param("dynammo", 2, marks=pytest.mark.soak)]
)
def test_the_number_of_nodes_changes_nothing(finished: Finished, tmp_path: Path, method: str, nodes: int) -> None:
    grid = LocalGrid(app, nodes=nodes, run_config={})
    assert Outcome.of(run_small(small_config(method), tmp_path, grid=grid).path) == finished(method).outcome


@both_kinds
def test_the_order_of_answers_changes_nothing(finished: Finished, tmp_path: Path, method: str) -> None:
    grid = Reversed(app, nodes=SITES, run_config={})
    assert Outcome.of(run_small(small_config(method), tmp_path, grid=grid).path) == finished(method).outcome


def test_a_method_hears_how_many_samples_each_round_speaks_for(tmp_path: Path) -> None:
    run = run_small(small_config("dynammo", {"method.merge": "weighted"}), tmp_path)
    adapted = [e for e in events(run.path, "step_finished") if e["stage"] == "adapt"]
    kept = load_file(run.path / "checkpoints" / "latest.safetensors")
    for task, event in enumerate(adapted):
        # 20 images of each of two classes; those of a site that has a single one take no part.
        weight = next(tensor for name, tensor in kept.items() if name.endswith(f"samples{task}")).item()
        replayed = sum(site["samples"] for site in event["sites"] if not site["abstained"]) - weight
        assert 38 <= weight <= 40
        assert (replayed > 0) is (task > 0)


def test_the_seed_changes_everything(finished: Finished, tmp_path: Path) -> None:
    other = Outcome.of(run_small(small_config(overrides={"seed": 2}), tmp_path).path)
    assert other.model != finished("dynammo").outcome.model


# --- stopped and resumed


@pytest.mark.parametrize("place", ["write_results", "write_model"])
def test_stopped_while_the_last_results_are_written_they_are_written_again(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    config = small_config(SHORT)
    calls: list[int] = []

    def stop_the_second_time(*_: Any, **__: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise Stopped
        return dict.fromkeys(("last_accuracy", *TESTED)) | {"site_accuracies": [], "site_mean_class_recalls": []}

    with monkeypatch.context() as patch:
        patch.setattr(f"server.run.task_loop.{place}", stop_the_second_time)
        with pytest.raises(Stopped):
            run_small(config, tmp_path)
    (directory,) = tmp_path.iterdir()
    run_small(config, tmp_path, resume=directory)
    assert Outcome.of(directory) == finished(SHORT).outcome


def test_a_finished_run_resumed_is_as_it_was(finished: Finished, tmp_path: Path) -> None:
    config = small_config(SHORT)
    run = run_small(config, tmp_path)
    run_small(config, tmp_path, resume=run.path)
    assert Outcome.of(run.path) == finished(SHORT).outcome
    assert len(events(run.path, "step_started")) == len(Experiment(config).steps)


def test_an_unfinished_run_says_that_it_is_running(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        run_small(small_config(), tmp_path, listeners=[StopAt(6, 1)])
    (directory,) = tmp_path.iterdir()
    outcome = Outcome.of(directory)
    assert (outcome.summary["status"], outcome.summary["rounds"]) == ("running", 5)
    assert len(outcome.summary["accuracy_after_tasks"]) == 1


def test_the_servers_optimiser_goes_on_with_what_it_remembers(tmp_path: Path) -> None:
    short: dict[str, Scalar] = {"federation.sites": 1, "method.train.rounds": 2, "method.train.epochs": 1}
    yogi: dict[str, Scalar] = {"federation.server_optimizer": "yogi", "federation.compression": "float16"}
    config = small_config("fine_tune", short | yogi)
    whole = run_small(config, tmp_path / "whole")
    with pytest.raises(Stopped):
        run_small(config, tmp_path / "stopped", listeners=[StopAt(1, 1)])
    (directory,) = (tmp_path / "stopped").iterdir()
    remembered = load_file(directory / "checkpoints" / "latest.safetensors")
    assert sum("server_optimizer" in name for name in remembered) > 2
    run_small(config, tmp_path / "stopped", resume=directory)
    assert Outcome.of(directory) == Outcome.of(whole.path)
    assert not any("server_optimizer" in name for name in load_file(whole.path / "checkpoints" / "latest.safetensors"))


# --- what is refused on resume


def stopped_run(runs: Path) -> Path:
    with pytest.raises(Stopped):
        run_small(small_config(SHORT), runs, listeners=[StopAt(2, 1)])
    (directory,) = runs.iterdir()
    return directory


def test_another_config_is_refused_by_key_and_the_run_is_left_as_it_was(finished: Finished, tmp_path: Path) -> None:
    directory = stopped_run(tmp_path)
    checkpoint = (directory / "checkpoints" / "latest.safetensors").read_bytes()
    with pytest.raises(CheckpointError, match=r"memory\.exemplars \(then 24, now 36\)"):
        run_small(small_config(SHORT, {"memory.exemplars": 36}), tmp_path, resume=directory)
    assert (directory / "checkpoints" / "latest.safetensors").read_bytes() == checkpoint
    run_small(small_config(SHORT), tmp_path, resume=directory)
    assert Outcome.of(directory) == finished(SHORT).outcome


def test_other_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = stopped_run(tmp_path)
    monkeypatch.setattr("server.run_directory.checkpoint.code_hash", lambda *_: "e" * 64)
    with pytest.raises(CheckpointError, match=r"now eeeeeeeeeeee.*--accept-new-code"):
        run_small(small_config(SHORT), tmp_path, resume=directory)


def test_accepted_the_new_code_goes_on_once_the_sites_have_it_too(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = stopped_run(tmp_path)
    old, new = events(directory, "run_started")[0]["code_hash"], "e" * 64
    for module in ("server.run.asking", "server.run_directory.checkpoint"):
        monkeypatch.setattr(f"{module}.code_hash", lambda *_: new)
    with pytest.raises(RunError, match="ProtocolError"):  # the sites have the old one
        run_small(small_config(SHORT), tmp_path, resume=directory, accept_new_code=True)
    monkeypatch.setattr("client.app.code_of", lambda *_: (new, ""))
    with pytest.raises(Stopped):
        run_small(small_config(SHORT), tmp_path, resume=directory, accept_new_code=True, listeners=[StopAt(3, 1)])
    # From here on it is the run's own code: nothing has to be accepted again.
    run_small(small_config(SHORT), tmp_path, resume=directory)
    assert Outcome.of(directory).model == finished(SHORT).outcome.model
    told = [(event["step"], event["then"], event["now"]) for event in events(directory, "code_changed")]
    assert told == [(2, old, new)] * 2
    with safe_open(directory / "checkpoints" / "latest.safetensors", framework="pt") as file:
        changes = json.loads(file.metadata()["progress"])["code_changes"]
    assert changes == [{"step": 2, "then": old, "now": new}]
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="then eeeeeeeeeeee"):
        run_small(small_config(SHORT), tmp_path, resume=directory)


def test_a_finished_run_is_the_newer_codes_own_once_that_is_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is left to do, but to evaluate, to correct and to extend it."""
    directory = run_small(small_config(SHORT), tmp_path).path
    for module in ("server.run.asking", "server.run_directory.checkpoint"):
        monkeypatch.setattr(f"{module}.code_hash", lambda *_: "e" * 64)
    with pytest.raises(CheckpointError, match="resume with --accept-new-code"):
        run_small(small_config(SHORT), tmp_path, resume=directory)
    run_small(small_config(SHORT), tmp_path, resume=directory, accept_new_code=True)
    run_small(small_config(SHORT), tmp_path, resume=directory)
    assert len(events(directory, "code_changed")) == 1


def test_a_corrupt_checkpoint_or_none_is_refused_and_said_in_the_log(tmp_path: Path) -> None:
    directory = stopped_run(tmp_path)
    file = directory / "checkpoints" / "latest.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="cannot be read") as caught:
        run_small(small_config(SHORT), tmp_path, resume=directory)
    assert events(directory, "run_failed")[-1]["message"] == str(caught.value)
    file.unlink()
    with pytest.raises(CheckpointError, match=r"checkpoint .* does not exist"):
        run_small(small_config(SHORT), tmp_path, resume=directory)
    with pytest.raises(CheckpointError, match=r"run directory .* does not exist"):
        run_small(small_config(SHORT), tmp_path, resume=tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


# --- sites that fail


def test_below_the_quorum_the_run_stops_and_can_be_resumed(finished: Finished, tmp_path: Path) -> None:
    with pytest.raises(RunError) as caught:
        run_small(small_config(), tmp_path, grid=failing_grid(lambda site, step: (site, step) == (1, 5)))
    message = str(caught.value)
    assert "task 2, stage adapt, round 1: 2 of 3 sites answered, 3 are needed" in message
    assert "site 1 (DataError, code 102)" in message
    assert "--resume" in message
    (directory,) = tmp_path.iterdir()
    failed = events(directory, "run_failed")[-1]
    assert failed["message"] == "task 2, stage adapt, round 1: 2 of 3 sites answered, 3 are needed."
    assert failed["failures"] == [{"site": 1, "code": 102, "error": "DataError"}]
    run_small(small_config(), tmp_path, resume=directory)
    assert Outcome.of(directory) == finished("dynammo").outcome


@pytest.mark.parametrize(("task", "stage"), [(0, "remember"), (0, "evaluate"), (1, "adapt"), (1, "recalibrate")])
def test_above_the_quorum_the_run_goes_on_without_the_site(
    finished: Finished, tmp_path: Path, task: int, stage: str
) -> None:
    """Once without its answer: it counts as failed there, and takes part in all other steps."""
    config = small_config(overrides={"federation.quorum": 0.6})
    missed = step_of(Experiment(config), task, stage).index
    run = run_small(config, tmp_path, grid=failing_grid(lambda site, step: (site, step) == (1, missed)))
    steps = events(run.path, "step_finished")
    assert steps[missed]["failures"] == [{"site": 1, "code": 102, "error": "DataError"}]
    assert [site["site"] for site in steps[missed]["sites"]] == [0, 2]
    assert all(step["failures"] == [] for step in steps if step["step"] != missed)
    outcome = Outcome.of(run.path)
    assert outcome.summary["status"] == "completed"
    learnt_alike = outcome.model == finished("dynammo").outcome.model
    assert learnt_alike == (stage == "evaluate")


@pytest.mark.parametrize(
    ("quorum", "sites", "needed"),
    [
        (1.0, 3, 3),
        (0.67, 3, 3),  # 2 of 3 are less than 0.67
        (0.66, 3, 2),
        (0.5, 3, 2),  # 1 of 3 is less than a half
        (0.5, 5, 3),  # nor are 2 of 5
        (0.01, 3, 1),  # nobody is never enough
        (0.07, 100, 7),  # 0.07 * 100 is 7.000000000000001 in floating point
    ],
)
@pytest.mark.parametrize("too_few", [True, False])
def test_a_quorum_is_at_least_that_share_of_the_sites(
    tmp_path: Path, quorum: float, sites: int, needed: int, too_few: bool
) -> None:
    overrides = {"federation.quorum": quorum, "federation.sites": sites, "federation.partition": "iid"}
    config = small_config("fine_tune", {**overrides, "tasks.sizes": 10, "data.train_per_class": "null"})
    answering = needed - too_few
    with pytest.raises(RunError if too_few else Stopped) as caught:  # enough: it comes to the second step
        run_small(config, tmp_path, grid=failing_grid(lambda site, _: site >= answering), listeners=[StopAt(1, 1)])
    if too_few:
        assert f"{answering} of {sites} sites answered, {needed} are needed" in str(caught.value)


def test_a_disk_that_fills_up_stops_the_run_and_it_can_be_resumed(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fill(event: Event) -> None:
        if (event["event"], event.get("step")) == ("step_finished", 7):
            monkeypatch.setattr(os, "fsync", full)

    with pytest.raises(CheckpointError, match=r"latest\.safetensors: No space left on device\. Free disk space"):
        run_small(small_config(), tmp_path, listeners=[fill])
    monkeypatch.undo()
    (directory,) = tmp_path.iterdir()
    assert not [path for path in directory.rglob("*") if path.name.startswith(".")]
    run_small(small_config(), tmp_path, resume=directory)
    assert Outcome.of(directory) == finished("dynammo").outcome
    assert events(directory, "run_started")[-1]["resumed_at"] == 7


def test_a_real_disk_that_fills_up(finished: Finished, small_disk: Path) -> None:
    filler = small_disk / "filler"

    def fill(event: Event) -> None:
        if (event["event"], event.get("step")) == ("step_started", 6):
            with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
                while True:
                    file.write(bytes(4096))

    with pytest.raises(CheckpointError, match="No space left on device") as caught:
        run_small(small_config(), small_disk / "runs", listeners=[fill])
    assert "Free disk space" in str(caught.value)
    filler.unlink()
    (directory,) = (small_disk / "runs").iterdir()
    run_small(small_config(), small_disk / "runs", resume=directory)
    assert Outcome.of(directory) == finished("dynammo").outcome


# --- nothing to learn from


def test_a_task_without_images_anywhere_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    folder = write_hospitals(tmp_path / "data", {"a": {"0": 3, "1": 3}, "b": {"0": 3, "1": 3}})
    config = hospital_config(folder, "dynammo", 2, {"data.classes": "['0', '1', '2', '3']"})
    with pytest.raises(RunError, match=r"task 2 \(classes 2, 3\) has no training images at any site"):
        run_small(config, tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


@every_method
def test_a_task_of_which_every_site_has_too_little_stops_the_run(tmp_path: Path, method: str) -> None:
    folder = write_hospitals(tmp_path / "data", {"a": {"0": 1, "2": 3, "3": 3}, "b": {"1": 1}})
    config = hospital_config(folder, method, 2)
    learning = [step.stage for step in Experiment(config).steps if isinstance(step.stage, LearningStage)]
    if all(stage.fewest_samples == 1 for stage in learning):
        run = run_small(config, tmp_path / "runs").path  # sums take what a single image adds
        assert json.loads((run / "summary.json").read_text())["status"] == "completed"
        return
    with pytest.raises(RunError, match=r"task 1 \(classes 0, 1\): no site has 2 training images of it"):
        run_small(config, tmp_path / "runs")


def test_sums_of_single_images_at_their_sites_are_those_of_one_site_that_has_them_all(tmp_path: Path) -> None:
    holdings = {"a": {"0": 9, "1": 9, "2": 1}, "b": {"0": 9, "1": 9, "3": 1}}
    folder = write_hospitals(tmp_path / "data", holdings)
    weights = []
    for sites, partition in ((2, "natural"), (1, "iid")):
        config = hospital_config(folder, "streaming_ridge", sites, {"federation.partition": partition})
        weights.append(load_file(run_small(config, tmp_path / "runs").path / "model.safetensors"))
    for name, tensor in weights[0].items():
        torch.testing.assert_close(tensor, weights[1][name], rtol=1e-4, atol=1e-5)


def test_a_later_task_of_single_images_is_summed_where_only_the_first_one_trains(tmp_path: Path) -> None:
    folder = write_hospitals(tmp_path / "data", {"a": {"0": 9, "1": 9, "2": 1}, "b": {"0": 9, "1": 9, "3": 1}})
    run = run_small(hospital_config(folder, "first_session", 2), tmp_path / "runs").path
    sums = [event for event in events(run, "step_finished") if event["stage"] == "sum" and event["task"] == 1]
    assert [site["samples"] for site in sums[0]["sites"]] == [1, 1]


def test_a_simulation_calls_sites_as_the_data_do(tmp_path: Path) -> None:
    folder = write_hospitals(tmp_path / "data", {"Zürich": dict.fromkeys("0123", 6), "a b": dict.fromkeys("0123", 6)})
    directory = run_small(
        hospital_config(folder, "streaming_ridge", 2, {"method.personal": True}), tmp_path / "runs"
    ).path
    assert events(directory, "run_started")[0]["site_names"] == ["Zürich", "a b"]
    own = json.loads((directory / "summary.json").read_text())["own_heads"]
    assert [row["site"] for row in own] == ["Zürich", "a b"]


def test_a_class_that_nobody_can_learn_is_named_before_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_hospitals(tmp_path / "data", {"a": {"0": 3, "1": 3, "2": 3, "3": 0}, "b": {"0": 3, "3": 0}})
    Experiment(hospital_config(folder, "streaming_ridge", 2, {"data.classes": "['0', '1', '2', '3']"})).check()
    said = "no site has a training image of 3: nobody learns it, and 2 test images of it count as missed"
    assert said in caplog.messages


@pytest.mark.parametrize(
    ("overrides", "error"),
    [
        ({"federation.sites": 201}, DataError),
        ({"backbone.name": "smal_cnn"}, ConfigError),
        ({"data.dataset": "digit"}, ConfigError),
    ],
)
def test_what_cannot_work_leaves_no_directory(
    tmp_path: Path, overrides: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        run_small(small_config(overrides=overrides), tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


HOSPITALS = {"a": {"0": 6, "1": 6}, "b": {"0": 6, "1": 3}}


def first_task_only(folder: Path, method: str, sites: int) -> Config[Any]:
    """All four classes are registered, one task is learnt; ten exemplars a site, however many sites."""
    return hospital_config(
        folder,
        method,
        sites,
        {"tasks.sizes": "[2]", "data.classes": "['0', '1', '2', '3']", "memory.exemplars": 10 * sites},
    )


@pytest.mark.parametrize("method", ["dynammo", "podnet", "icarl", "dynamic_er", "ridge", "streaming_ridge"])
def test_a_site_with_nothing_of_a_task_is_as_good_as_not_there(tmp_path: Path, method: str) -> None:
    two = write_hospitals(tmp_path / "two", {**HOSPITALS})
    three = write_hospitals(tmp_path / "three", {**HOSPITALS, "c": {"2": 5, "3": 5}})
    without = run_small(first_task_only(two, method, 2), tmp_path / "runs_of_two")
    with_it = run_small(first_task_only(three, method, 3), tmp_path / "runs_of_three")
    assert Outcome.of(with_it.path).model == Outcome.of(without.path).model
    one, other = Outcome.of(with_it.path).summary, Outcome.of(without.path).summary
    for key in ("last_accuracy", "mean_class_recall", "worst_site_accuracy", "bytes_up"):
        assert one[key] == other[key]
    assert one["site_accuracies"] == [*other["site_accuracies"], None]


def test_a_site_that_abstains_from_being_tested_counts_nothing(finished: Finished, tmp_path: Path) -> None:
    """Ours never does; the code of another site may."""
    nothing = {"weights": ArrayRecord(), "numbers": MetricRecord(), "report": ConfigRecord({"abstained": True})}

    def handle(message: Message, context: Context) -> Message:
        asked = message.content.config_records["instruction"]["site"]
        if asked == 2 and message.metadata.message_type == "evaluate":
            return Message(RecordDict(dict(nothing)), reply_to=message)
        return app(message, context)

    grid = LocalGrid(handle, nodes=SITES, run_config={})  # type: ignore[arg-type]
    outcome, usual = Outcome.of(run_small(small_config(), tmp_path, grid=grid).path), finished("dynammo").outcome
    assert outcome.model == usual.model
    assert outcome.summary["site_accuracies"] == [*usual.summary["site_accuracies"][:2], None]


@every_method
def test_sites_that_abstain_are_named_in_the_events(finished: Finished, method: str) -> None:
    """Of the first task site 1 holds a single image, of the second all hold several."""
    run = finished(method)
    training = [event for event in events(run.path, "step_finished") if event["bytes_up"]]
    assert {event["task"] for event in training} == {0, 1}
    for event in training:
        abstained = [site["site"] for site in event["sites"] if site["abstained"]]
        stage = run.experiment.steps[event["step"]].stage
        assert isinstance(stage, LearningStage)
        assert abstained == ([1] if event["task"] == 0 and stage.fewest_samples > 1 else [])
        for site in event["sites"]:
            assert (site["samples"] == 0) == site["abstained"] == (site["metrics"] == {}) == (site["bytes_up"] == 0)
            assert site["abstained"] or math.isfinite(site["metrics"]["seconds"])
