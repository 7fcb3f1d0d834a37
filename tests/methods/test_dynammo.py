from __future__ import annotations

from dataclasses import replace
from math import log

import pytest
import torch
from method_bench import STREAM, Bench, adapters, bench, grown, learn, rehearsal, toy_images
from plain_networks import says

from dynammo_core.methods.adapters import AUXILIARY
from dynammo_core.models.names import matching, travelling_names
from dynammo_core.plan import LossContext


def loss_on_features(made: Bench, stage: str, task: int, labels: list[int]) -> float:
    context = LossContext(task, "features")
    return made.stage(stage, task).loss(made.model, torch.randn(len(labels), 64), torch.tensor(labels), context).item()


# Loss


def test_stage_1_is_the_auxiliary_heads_cross_entropy_by_hand() -> None:
    # The head has the rows 2, 3, others and says 1/2, 1/4, 1/4: label 2 costs ln 2, label 3 ln 4, an exemplar (label 0,
    # so "others") ln 4: the mean is 5/3 ln 2. The task heads say something else and do not count.
    made = grown()
    says(made.model.head(AUXILIARY), [1 / 2, 1 / 4, 1 / 4])
    assert loss_on_features(made, "adapt", 1, [2, 3, 0]) == pytest.approx(5 / 3 * log(2))


def test_stage_2_sums_the_cross_entropies_of_all_task_heads_by_hand() -> None:
    # Head 0 (rows 0, 1, others) says 1/2, 1/4, 1/4, head 1 (rows 2, 3, others) 1/5, 3/5, 1/5. For the labels 0 and 3:
    # head 0 costs ln 2 and, as others, ln 4; head 1 costs, as others, ln 5, and ln 5/3. Each the mean of two, summed.
    made = grown()
    says(made.model.head("task0"), [1 / 2, 1 / 4, 1 / 4])
    says(made.model.head("task1"), [1 / 5, 3 / 5, 1 / 5])
    expected = (log(2) + log(4)) / 2 + (log(5) + log(5 / 3)) / 2
    assert loss_on_features(made, "balance", 1, [0, 3]) == pytest.approx(expected)


def test_the_loss_starts_from_the_level_it_is_given() -> None:
    made, images = grown(), toy_images((2, 3))
    adapters(made).eval()
    stage, values = made.stage("adapt", 1), []
    for level in ("images", "prefix", "features"):
        inputs = made.inputs(replace(stage, inputs=level), images)
        values.append(stage.loss(made.model, inputs, images.labels, LossContext(1, level)).item())
    assert values == pytest.approx([values[0]] * 3)


# Prediction


def test_the_lowest_others_names_the_task_and_its_best_class_is_the_answer() -> None:
    made = grown()
    answers = torch.tensor(  # probabilities of the rows 0, 1, others of head 0 and 2, 3, others of head 1
        [
            [0.6, 0.3, 0.10, 0.10, 0.70, 0.20],  # head 0: class 0, although head 1 is surer of class 3
            [0.2, 0.2, 0.60, 0.25, 0.35, 0.40],  # head 1: class 3
            [0.02, 0.03, 0.95, 0.02, 0.01, 0.97],  # nobody knows it; head 0 the least little
            [0.44, 0.46, 0.10, 0.85, 0.03, 0.12],  # head 0: class 1
        ]
    )
    with torch.no_grad():
        for task in range(2):  # each head reads the logits of its rows from features of its own
            head = made.model.head(f"task{task}")
            head.bias.zero_()
            head.weight.copy_(torch.eye(64)[3 * task : 3 * task + 3])
    says(made.model.head(AUXILIARY), [0.999, 0.0005, 0.0005])  # takes no part in predictions
    features = torch.cat([answers.log(), torch.zeros(4, 58)], dim=1)
    prediction = made.method.decision.predict(made.model, features)
    assert prediction.labels.tolist() == [0, 3, 1, 1]
    assert prediction.probability.tolist() == pytest.approx([0.6, 0.35, 0.03, 0.46])
    assert prediction.known.tolist() == pytest.approx([0.9, 0.6, 0.05, 0.9])


# Stages: who does what, and what travels


def travelling(made: Bench, task: int, stage: str) -> tuple[set[str], set[str]]:
    """What goes down and up, as the three kinds of tensor that travel."""
    names = travelling_names(made.model) + list(made.archive)
    found = made.stage(stage, task)
    return tuple({_kind(name) for name in matching(names, patterns)} for patterns in (found.down, found.up))  # type: ignore[return-value]


def _kind(name: str) -> str:
    if name.startswith("extractor.adapters."):
        return "statistics" if "running" in name else "adapters"
    return name.rsplit(".", 1)[0]


def test_what_travels_in_each_stage() -> None:
    made = grown(tasks=3)
    whole, heads = {"adapters", "statistics"}, {"heads.task0", "heads.task1", "heads.task2"}
    auxiliary = {"heads.auxiliary"}
    assert travelling(made, 2, "adapt") == (whole | auxiliary, whole | auxiliary)
    assert travelling(made, 2, "recalibrate") == (whole, {"statistics"})
    assert travelling(made, 2, "balance") == (whole | heads, heads)
    assert travelling(made, 2, "remember") == (whole | heads, set())
    assert travelling(made, 2, "evaluate") == (whole | heads, set())


@pytest.mark.parametrize(
    ("params", "first", "later"),
    [
        ({}, ["adapt", "balance"], ["adapt", "recalibrate", "balance"]),
        ({"recalibrate": False}, ["adapt", "balance"], ["adapt", "balance"]),
        ({"norm": "group"}, ["adapt", "balance"], ["adapt", "balance"]),
        ({"adapters": False}, ["balance"], ["balance"]),
    ],
)
def test_stages_of_a_task(params: dict[str, object], first: list[str], later: list[str]) -> None:
    method = bench("dynammo", **params).method
    for task, names in enumerate([first, later, later]):
        assert [stage.name for stage in method.all_stages(task)] == [*names, "remember", "evaluate"]


def test_training_sets() -> None:
    made = grown(tasks=3)
    all_, stages = rehearsal(2), {name: made.stage(name, 2) for name in ("adapt", "recalibrate", "balance")}
    adapted = stages["adapt"].learns_from(all_)
    assert adapted.record_ids == all_.new.record_ids + all_.memory.record_ids
    for name in ("recalibrate", "balance"):  # 3 exemplars of each old class, 3 images of each new one
        assert stages[name].learns_from(all_).class_counts(8) == [3] * 6 + [0] * 2


def test_a_site_without_new_images_abstains_from_adapting_and_balances_with_its_memory() -> None:
    made, lacking = grown(tasks=3), rehearsal(2, holds_new=False)
    assert len(made.stage("adapt", 2).learns_from(lacking)) == 0
    assert made.stage("balance", 2).learns_from(lacking).record_ids == lacking.memory.record_ids


# The control without adapters


def test_the_control_has_no_adapters_no_auxiliary_head_and_no_archive() -> None:
    made = bench("dynammo", adapters=False)
    learn(made, 2)
    assert made.model.extractor.adapters is None
    assert made.archive == {}
    assert list(made.model.heads) == ["task0", "task1"]
    assert {_kind(name) for name in travelling_names(made.model)} == {"heads.task0", "heads.task1"}


# The whole


@pytest.mark.parametrize("params", [{"alpha": 0.5}, {"merge": "last", "recalibrate": False}, {"adapters": False}])
def test_old_tasks_are_not_forgotten(params: dict[str, object]) -> None:
    made = bench("dynammo", balance={"epochs": 60, "optimizer": "adam", "learning_rate": 0.01}, **params)
    learn(made, 3)
    # Six classes, three exemplars of each old one; guessing would get a sixth.
    assert made.accuracy(toy_images(STREAM.classes(0), seed=1)) > 0.7
    assert made.accuracy(toy_images(STREAM.seen(2), seed=1)) > 0.7
