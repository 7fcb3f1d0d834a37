from __future__ import annotations

from math import log

import pytest
import torch
from method_bench import STREAM, Bench, bench, same, state, toy_images
from plain_networks import says


def grown(tasks: int, **params: object) -> Bench:
    made = bench("wa", **params)
    for task in range(tasks):
        made.begin(task)
    return made


def test_the_loss_weighs_distillation_by_the_share_of_old_classes_by_hand() -> None:
    # Four old classes of six: s = 2/3. Softened by T = 2 the teacher says 1/2, 1/4, 1/8, 1/8 of the old classes. The
    # pupil says 4, 1, 1, 4, 4, 2 sixteenths; T = 2 takes roots: 2, 1, 1, 2 of the old classes, so 1/3, 1/6, 1/6, 1/3.
    # Distillation: (1/2 + 1/8) ln 3 + (1/4 + 1/8) ln 6. The labels 4 and 5 cost ln 4 and ln 8, a mean of 5/2 ln 2.
    made = grown(2)
    says(made.head, [p**2 for p in (1 / 2, 1 / 4, 1 / 8, 1 / 8)])
    made.begin(2)
    says(made.head, [p / 16 for p in (4, 1, 1, 4, 4, 2)])
    loss = made.loss(made.stage("train", 2), 2, toy_images((4, 5), each=1))
    expected = 1 / 3 * 5 / 2 * log(2) + 2 / 3 * (5 / 8 * log(3) + 3 / 8 * log(6))
    assert loss.item() == pytest.approx(expected)


def test_the_first_task_is_plain_cross_entropy_by_hand() -> None:
    made = grown(1)
    says(made.head, [1 / 4, 3 / 4])
    loss = made.loss(made.stage("train", 0), 0, toy_images((0, 1), each=1))
    assert loss.item() == pytest.approx((log(4) + log(4 / 3)) / 2)


def test_new_vectors_get_the_mean_length_of_old_ones_by_hand() -> None:
    # Old vectors of the lengths 1 and 3, new ones of 2 and 6: means 2 and 4, so the new ones are halved, to 1 and 3.
    made = grown(2)
    with torch.no_grad():
        made.head.weight.copy_(torch.diag(torch.tensor([1.0, -3.0, 2.0, 6.0])) @ torch.eye(4, 64))
        bias = made.head.get_parameter("bias").clone()
    made.finish("train", 1)
    assert made.head.weight.diagonal().tolist() == pytest.approx([1, -3, 1, 3])
    assert made.head.weight.norm(dim=1).tolist() == pytest.approx([1, 3, 1, 3])  # no direction has changed
    assert torch.equal(made.head.get_parameter("bias"), bias)


def test_nothing_but_the_end_of_training_aligns_and_never_in_the_first_task() -> None:
    made = grown(1)
    with torch.no_grad():
        made.head.weight[1] *= 7
    before = state(made)
    made.finish("train", 0)
    assert same(state(made), before)
    made.begin(1)
    before = state(made)
    for name in ("remember", "evaluate"):
        made.finish(name, 1)
    assert same(state(made), before)
    made.finish("train", 1)
    changed = {name for name, tensor in state(made).items() if not torch.equal(tensor, before[name])}
    assert changed == {"heads.classes.weight"}


def test_the_aligned_model_is_the_next_teacher() -> None:
    made = grown(2)
    with torch.no_grad():
        made.head.weight[2:] *= 7
    made.finish("train", 1)
    made.begin(2)
    norms = made.archive["teacher.heads.classes.weight"].norm(dim=1)
    assert norms[:2].mean().item() == pytest.approx(norms[2:].mean().item())
    assert len(norms) == len(STREAM.seen(1))
