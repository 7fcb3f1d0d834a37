from __future__ import annotations

from math import log

import pytest
import torch
from method_bench import STREAM, Bench, bench, toy_images

from dynammo_core.methods.decisions import CLASSES
from dynammo_core.models.names import matching, travelling_names
from dynammo_core.plan import LossContext

pytestmark = pytest.mark.parametrize("name", ["fine_tune", "replay", "joint"])


def grown(name: str, tasks: int) -> Bench:
    made = bench(name)
    for task in range(tasks):
        made.begin(task)
    return made


def test_the_head_gains_rows_and_keeps_what_it_had(name: str) -> None:
    made = grown(name, 1)
    for task in range(1, 4):
        before = made.model.head(CLASSES)
        made.begin(task)
        after = made.model.head(CLASSES)
        assert after.rows == STREAM.seen(task)
        assert torch.equal(after.weight[: len(before.rows)], before.weight)
    assert list(made.model.heads) == [CLASSES]


def test_the_loss_is_the_cross_entropy_over_all_classes_seen_by_hand(name: str) -> None:
    # Four classes after two tasks, said to be 1/2, 1/4, 1/8, 1/8 whatever the image: labels 0 and 2 cost ln 2 and ln 8.
    made = grown(name, 2)
    head = made.model.head(CLASSES)
    with torch.no_grad():
        head.weight.zero_()
        head.bias.copy_(torch.tensor([1 / 2, 1 / 4, 1 / 8, 1 / 8]).log())
    loss = made.loss(made.stage("train", 1), 1, toy_images((0, 2), each=1))
    assert loss.item() == pytest.approx((log(2) + log(8)) / 2)


def test_the_whole_network_travels_both_ways_and_statistics_with_it(name: str) -> None:
    made = grown(name, 1)
    stage, names = made.stage("train", 0), travelling_names(made.model)
    assert matching(names, stage.down) == matching(names, stage.up) == names
    assert {"extractor.backbone.stages.2.block3.1.running_var", "heads.classes.weight"} <= set(names)
    assert not made.method.freezes_backbone


def test_a_class_that_has_not_come_yet_is_an_error(name: str) -> None:
    made = grown(name, 2)
    with pytest.raises(ValueError, match=r"label 4 has no row in a head with the classes \(0, 1, 2, 3\)"):
        made.stage("train", 1).loss(made.model, torch.randn(2, 3, 16, 16), torch.tensor([0, 4]), LossContext(1))
