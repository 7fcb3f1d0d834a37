"""What a site does in a step: the same bits each time it is asked, its memory moved on once, abstaining in the open."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_runs import SITES, hospital_config, instruction, small_config, small_site, step_of, write_hospitals
from torch import Tensor

from client.state.feature_files import FeatureFiles
from client.steps.actions import answer
from dynammo_core.experiment import Experiment
from dynammo_core.plan import Action, Step
from dynammo_core.scoring.reliability import Reliability
from dynammo_core.support.errors import MemoryStoreError, ProtocolError
from dynammo_core.wire.protocol import NUMBERS, Instruction, Report

EXPERIMENT = Experiment(small_config())
EMPTY_SITE = 1
"""The site that holds a single image of the first task."""


def ask(experiment: Experiment, step: Step, site: int, workspace: Path) -> Report:
    return answer(instruction(experiment, step, site, workspace), small_site(experiment, site, workspace))


def ask_changed(sent: Instruction, weights: dict[str, Tensor], workspace: Path) -> Report:
    return answer(replace(sent, weights=weights), small_site(EXPERIMENT, sent.site, workspace))


def memory_file(workspace: Path, site: int) -> Path:
    return workspace / f"site-{site:03d}" / "memory.safetensors"


def same(one: Report, other: Report) -> bool:
    """Bit for bit, but for the clock."""
    numbers, others = ({**report.numbers, "seconds": 0} for report in (one, other))
    return (
        one.abstained == other.abstained
        and numbers == others
        and list(one.weights) == list(other.weights)
        and all(one.weights[name].numpy().tobytes() == other.weights[name].numpy().tobytes() for name in one.weights)
    )


@pytest.mark.parametrize("step", EXPERIMENT.steps, ids=lambda step: f"{step.task}-{step.stage.name}-{step.round}")
def test_the_answer_to_each_step_is_the_same_bits_twice(step: Step, tmp_path: Path) -> None:
    """Another process, another site asked before, another state of torch's global generator: nothing changes."""
    prepare_memory(tmp_path, step.task)
    first = ask(EXPERIMENT, step, 0, tmp_path)
    torch.manual_seed(99)
    elsewhere = Experiment(EXPERIMENT.config)
    other_workspace = tmp_path / "again"
    prepare_memory(other_workspace, step.task)
    ask(elsewhere, step, 2, other_workspace)
    again = ask(elsewhere, step, 0, other_workspace)
    assert same(first, again)
    assert same(first, ask(EXPERIMENT, step, 0, tmp_path))  # what an idempotent handler owes after a lost answer
    assert set(first.numbers) == NUMBERS[step.stage.action]
    assert first.numbers["seconds"] >= 0


@pytest.mark.parametrize("stage", ["adapt", "balance", "evaluate"])
def test_a_new_process_of_a_real_site_finds_features_and_answers_the_same_bits(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask_process() -> Report:
        experiment = Experiment(EXPERIMENT.config)
        site = small_site(experiment, 0, tmp_path)
        files = FeatureFiles(tmp_path / "real", 2**20, run="run", site="site-000", key=bytes(range(32)))
        return answer(instruction(experiment, step, 0, tmp_path), replace(site, features=files))

    step = step_of(EXPERIMENT, 1, stage)
    prepare_memory(tmp_path, 1)
    plain = ask(EXPERIMENT, step, 0, tmp_path)
    assert same(plain, ask_process())
    monkeypatch.setattr("client.steps.assignment.embed_samples", None)
    assert same(plain, ask_process())


def test_features_in_half_precision_are_other_bits_and_nearly_the_same_answer(tmp_path: Path) -> None:
    coarse = Experiment(small_config(overrides={"compute.features": "float16"}))
    step = step_of(EXPERIMENT, 0, "balance")
    one, other = (ask(experiment, step, 0, tmp_path / "one").weights for experiment in (EXPERIMENT, coarse))
    again = ask(coarse, step, 0, tmp_path / "one").weights  # kept now
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=1e-2)
        assert torch.equal(other[name], again[name])
    assert any(not torch.equal(one[name], other[name]) for name in one)


def prepare_memory(workspace: Path, task: int) -> None:
    """The memories of all sites as they stand when a task begins."""
    for earlier in range(task):
        for site in range(SITES):
            ask(EXPERIMENT, step_of(EXPERIMENT, earlier, "remember"), site, workspace)


def test_sites_rounds_and_tasks_have_randomness_of_their_own(tmp_path: Path) -> None:
    """The same weights and images but another round: other batches, another answer."""
    one = ask(EXPERIMENT, step_of(EXPERIMENT, 0, "balance", 0), 0, tmp_path)
    other = ask(EXPERIMENT, step_of(EXPERIMENT, 0, "balance", 1), 0, tmp_path)
    assert one.numbers["class_counts"] == other.numbers["class_counts"]
    assert not same(one, other)


def test_training_trains(tmp_path: Path) -> None:
    step = step_of(EXPERIMENT, 0, "adapt")
    sent = instruction(EXPERIMENT, step, 0, tmp_path)
    report = ask(EXPERIMENT, step, 0, tmp_path)
    changed = {name for name, tensor in report.weights.items() if not torch.equal(tensor, sent.weights[name])}
    assert changed == set(report.weights) == set(sent.weights)
    assert report.class_counts == small_site(EXPERIMENT, 0, tmp_path).train_images((0, 1)).class_counts(10)


# --- memory


def test_remembering_twice_is_remembering_once(tmp_path: Path) -> None:
    step = step_of(EXPERIMENT, 0, "remember")
    first = ask(EXPERIMENT, step, 0, tmp_path)
    content = memory_file(tmp_path, 0).read_bytes()
    second = ask(EXPERIMENT, step, 0, tmp_path)
    assert memory_file(tmp_path, 0).read_bytes() == content
    assert same(first, second)
    assert first.numbers["memory_bytes"] == len(content)
    assert sum(first.class_counts) == 7  # 24 exemplars / 3 sites / 2 classes = 4 a class, and it has 3 of one
    held = small_site(EXPERIMENT, 0, tmp_path).memory()
    assert (held.task, held.samples.class_counts(10)) == (0, first.class_counts)


def test_a_memory_that_is_ahead_is_refused_and_left_alone(tmp_path: Path) -> None:
    prepare_memory(tmp_path, 2)
    content = memory_file(tmp_path, 0).read_bytes()
    with pytest.raises(MemoryStoreError, match="stands after task 2, but task 1 is to be remembered"):
        ask(EXPERIMENT, step_of(EXPERIMENT, 0, "remember"), 0, tmp_path)
    assert memory_file(tmp_path, 0).read_bytes() == content


def test_a_site_that_missed_a_task_goes_on_with_the_next(tmp_path: Path) -> None:
    """It was not reached when the first task was remembered: it has exemplars of the second alone."""
    report = ask(EXPERIMENT, step_of(EXPERIMENT, 1, "remember"), 0, tmp_path)
    held = small_site(EXPERIMENT, 0, tmp_path).memory()
    assert held.task == 1
    assert held.samples.class_counts(10) == report.class_counts
    assert report.class_counts[:2] == [0, 0]
    assert sum(report.class_counts[2:4]) > 0


def test_the_memory_of_another_run_or_site_is_refused(tmp_path: Path) -> None:
    step = step_of(EXPERIMENT, 0, "remember")
    ask(EXPERIMENT, step, 0, tmp_path)
    with pytest.raises(MemoryStoreError, match="belongs to"):
        answer(instruction(EXPERIMENT, step, 0, tmp_path), small_site(EXPERIMENT, 0, tmp_path, run="another-run"))
    memory_file(tmp_path, 2).parent.mkdir()
    memory_file(tmp_path, 0).rename(memory_file(tmp_path, 2))
    with pytest.raises(MemoryStoreError, match="belongs to"):
        ask(EXPERIMENT, step, 2, tmp_path)


def test_exemplars_are_trained_on(tmp_path: Path) -> None:
    """The auxiliary head sees them as "others": without them the answer is another one."""
    step = step_of(EXPERIMENT, 1, "adapt")
    alone = ask(EXPERIMENT, step, 0, tmp_path)
    prepare_memory(tmp_path, 1)
    rehearsed = ask(EXPERIMENT, step, 0, tmp_path)
    assert alone.class_counts[:2] == [0, 0]
    assert sum(rehearsed.class_counts[:2]) == 7  # as in the test above
    assert alone.class_counts[2:] == rehearsed.class_counts[2:]


def test_images_of_classes_to_come_are_counted_and_never_those_of_classes_in_no_task(tmp_path: Path) -> None:
    """Ten test images a class: two classes are learnt in each of two tasks, six in none."""
    for task, expected in ((0, (20, 20)), (1, (40, 0))):
        step = step_of(EXPERIMENT, task, "evaluate")
        tables = [Reliability.of(ask(EXPERIMENT, step, site, tmp_path).numbers) for site in range(SITES)]
        assert (sum(table.images for table in tables), sum(table.to_come for table in tables)) == expected


# --- nothing to learn from


def test_a_site_without_images_of_the_task_abstains_and_touches_no_memory(tmp_path: Path) -> None:
    folder = write_hospitals(tmp_path / "data", {"a": {"0": 4, "1": 4, "2": 4, "3": 4}, "b": {"2": 4}})
    experiment = Experiment(hospital_config(folder, "dynammo", 2))
    for name in ("adapt", "balance"):
        assert ask(experiment, step_of(experiment, 0, name), 1, tmp_path) == Report(abstained=True)
        assert not ask(experiment, step_of(experiment, 0, name), 0, tmp_path).abstained
    remembered = ask(experiment, step_of(experiment, 0, "remember"), 1, tmp_path)
    assert (remembered.abstained, sum(remembered.class_counts)) == (False, 0)
    evaluated = ask(experiment, step_of(experiment, 0, "evaluate"), 1, tmp_path)
    assert (evaluated.class_counts, evaluated.numbers["confusion"]) == ([0] * 4, [0] * 16)
    assert ask(experiment, step_of(experiment, 1, "recalibrate"), 1, tmp_path).abstained is False
    assert ask(experiment, step_of(experiment, 1, "remember"), 1, tmp_path).class_counts == [0, 0, 4, 0]


@pytest.mark.parametrize(("images", "abstains"), [(1, True), (2, False)])
@pytest.mark.parametrize("method", ["dynammo", "fine_tune"])
def test_a_site_with_a_single_sample_abstains(tmp_path: Path, method: str, images: int, abstains: bool) -> None:
    folder = write_hospitals(tmp_path / "data", {"a": {"0": 4, "1": 4, "2": 4, "3": 4}, "b": {"0": images, "3": 4}})
    experiment = Experiment(hospital_config(folder, method, 2))
    training = [step for step in experiment.steps if step.task == 0 and step.stage.action is Action.FIT]
    for step in training:
        report = ask(experiment, step, 1, tmp_path)
        assert report.abstained == abstains
        assert bool(report.weights) != abstains


# --- instructions that do not fit


def test_an_instruction_without_one_of_its_tensors_is_refused(tmp_path: Path) -> None:
    for step in (step_of(EXPERIMENT, 0, "adapt"), step_of(EXPERIMENT, 1, "evaluate")):
        sent = instruction(EXPERIMENT, step, 0, tmp_path)
        for name in sent.weights:
            left = {other: tensor for other, tensor in sent.weights.items() if other != name}
            with pytest.raises(ProtocolError, match="1 tensors are missing or were not declared") as caught:
                ask_changed(sent, left, tmp_path)
            assert repr(name) in str(caught.value)


@pytest.mark.parametrize(
    "name",
    ["heads.task0.weight", "teacher.heads.task0.weight", "extractor.backbone.prefix.block0.0.weight", "sums.gram", ""],
)
def test_an_instruction_with_another_tensor_is_refused(tmp_path: Path, name: str) -> None:
    sent = instruction(EXPERIMENT, step_of(EXPERIMENT, 0, "adapt"), 0, tmp_path)
    assert name not in sent.weights
    with pytest.raises(ProtocolError, match="missing or were not declared") as caught:
        ask_changed(sent, {**sent.weights, name: torch.zeros(3, 64)}, tmp_path)
    assert repr(name.removeprefix("teacher.")) in str(caught.value)


def test_an_instruction_with_a_tensor_of_another_shape_is_refused(tmp_path: Path) -> None:
    sent = instruction(EXPERIMENT, step_of(EXPERIMENT, 0, "adapt"), 0, tmp_path)
    name = "heads.auxiliary.weight"
    with pytest.raises(ProtocolError, match="do not fit the model") as caught:
        ask_changed(sent, {**sent.weights, name: sent.weights[name][:-1]}, tmp_path)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("index", [-1, len(EXPERIMENT.steps), 10**9])
def test_a_step_outside_the_plan_is_refused(tmp_path: Path, index: int) -> None:
    sent = replace(instruction(EXPERIMENT, EXPERIMENT.steps[0], 0, tmp_path), step=index)
    with pytest.raises(
        ProtocolError, match=f"the plan has no step {index}. Accepted: 0 to {len(EXPERIMENT.steps) - 1}"
    ):
        answer(sent, small_site(EXPERIMENT, 0, tmp_path))
