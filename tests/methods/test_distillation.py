from __future__ import annotations

from math import log

import pytest
import torch
from method_bench import STREAM, Bench, bench, learn, rehearsal, same, state, toy_images
from plain_networks import says

from dynammo_core.methods import METHODS
from dynammo_core.methods.base import TEACHER_PREFIX
from dynammo_core.methods.distillation import soft_cross_entropy, taught_logits
from dynammo_core.methods.heads import NETWORK
from dynammo_core.models.names import matching, travelling_names

DISTILLING = ["icarl", "wa", "dark_er", "lucir", "podnet"]

every_one = pytest.mark.parametrize("name", DISTILLING)


def taught(made: Bench) -> dict[str, torch.Tensor]:
    return {name.removeprefix(TEACHER_PREFIX): tensor for name, tensor in made.archive.items()}


@pytest.mark.parametrize("name", METHODS)
def test_these_alone_send_a_teacher(name: str) -> None:
    sent = [pattern for stage in bench(name).method.all_stages(1) for pattern in stage.down]
    assert any(pattern.startswith(TEACHER_PREFIX) for pattern in sent) is (name in (*DISTILLING, "moving_ridge"))


@every_one
def test_the_teacher_is_the_model_as_the_task_before_left_it(name: str) -> None:
    made = bench(name, train={"rounds": 1, "epochs": 1})
    made.begin(0)
    assert made.archive == {}
    for task in range(1, 4):
        made.head.weight.data.add_(task)  # as if it had learnt something
        before = {n: t for n, t in state(made).items() if n in matching(travelling_names(made.model), NETWORK)}
        made.begin(task)
        assert same(taught(made), before)  # and nothing of the teachers before
        with torch.no_grad():
            made.head.weight.zero_()
        assert same(taught(made), before)


@every_one
def test_it_goes_to_the_sites_with_train_alone_and_never_comes_back(name: str) -> None:
    made = bench(name)
    made.begin(0)
    made.begin(1)
    for stage in made.method.all_stages(1):
        sent = matching(made.archive, stage.down)
        assert sent == (list(made.archive) if stage.name == "train" else [])
        assert not matching(made.archive, stage.up)


@every_one
def test_learning_changes_no_teacher(name: str) -> None:
    made = bench(name, train={"rounds": 1, "epochs": 2})
    learn(made, 1)
    made.begin(1)
    kept = {name: tensor.clone() for name, tensor in made.archive.items()}
    made.fit(made.stage("train", 1), 1, rehearsal(1).new)
    assert same(made.archive, kept)


@every_one
def test_the_teacher_holds_back_what_moves_away_from_it(name: str) -> None:
    """With a teacher, one step of training on new images alone goes another way than without one."""
    gradients = []
    for taught_by_one in (True, False):
        made = bench(name)
        learn(made, 1)
        made.begin(1)
        if not taught_by_one:
            made.archive.clear()
        with torch.no_grad():  # where the teacher is, distances have no slope
            made.head.weight.mul_(1.5)
            next(made.model.extractor.parameters()).mul_(1.5)
        made.loss(made.stage("train", 1), 1, toy_images((0, 2, 3), each=4)).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in made.model.extractor.parameters()]))
    assert (gradients[0] - gradients[1]).norm() > 0.01 * gradients[1].norm()


def test_taught_logits_are_those_of_the_classes_the_teacher_knows() -> None:
    made = bench("icarl")
    made.begin(0)
    says(made.head, [3 / 4, 1 / 4])
    made.begin(1)
    says(made.head, [1 / 4] * 4)
    teacher = made.teacher(made.stage("train", 1), 1)
    assert teacher is not None
    logits = taught_logits(teacher, torch.randn(5, 3, 16, 16))
    assert made.head.rows == STREAM.seen(1)
    torch.testing.assert_close(logits, torch.tensor([[3 / 4, 1 / 4]]).log().expand(5, 2))


def test_soft_cross_entropy_by_hand() -> None:
    # T = 2 halves the logits. First image: the teacher's 2 ln 3, 0 become 3/4, 1/4, the pupil's 2 ln 2, 0 become 2/3,
    # 1/3: 3/4 ln(3/2) + 1/4 ln 3. Second: the teacher says 1/2, 1/2, the pupil 1/5, 4/5: (ln 5 + ln(5/4)) / 2.
    teacher = torch.tensor([[2 * log(3), 0], [0.7, 0.7]])
    pupil = torch.tensor([[2 * log(2), 0], [0, 2 * log(4)]])
    expected = (3 / 4 * log(3 / 2) + 1 / 4 * log(3) + (log(5) + log(5 / 4)) / 2) / 2
    assert soft_cross_entropy(pupil, teacher, 2.0).item() == pytest.approx(expected)
