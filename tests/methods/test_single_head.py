from __future__ import annotations

from math import log

import pytest
import torch
from method_bench import STREAM, Bench, bench, toy_images

from dynammo_core.configuration.config import resolve
from dynammo_core.methods.decisions import CLASSES
from dynammo_core.models.names import matching, travelling_names
from dynammo_core.plan import LossContext, Summarise

pytestmark = pytest.mark.parametrize("name", ["fine_tune", "replay", "joint"])


def grown(name: str, tasks: int, **params: object) -> Bench:
    made = bench(name, **params, **({"restart": False} if name == "joint" else {}))
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


def test_the_whole_network_travels_both_ways_and_statistics_unless_they_are_frozen(name: str) -> None:
    for batch_norm in ("frozen", "averaged", "reestimated"):
        made = grown(name, 1, batch_norm=batch_norm)
        stage, names = made.stage("train", 0), travelling_names(made.model)
        assert matching(names, stage.down) == names
        left_out = [name for name in names if name not in matching(names, stage.up)]
        statistics = [name for name in names if ".running_" in name]
        assert "extractor.backbone.stages.2.block3.1.running_var" in statistics
        assert left_out == (statistics if batch_norm == "frozen" else [])
        assert not made.method.freezes_backbone


def test_statistics_move_in_training_unless_they_are_frozen_and_may_be_estimated_at_its_end(name: str) -> None:
    images = toy_images((0, 1))
    for batch_norm in ("frozen", "averaged", "reestimated"):
        made = grown(name, 1, batch_norm=batch_norm, train={"rounds": 1, "epochs": 1})
        norm = made.model.get_submodule("extractor.backbone.prefix.block0.1")
        before = norm.get_buffer("running_mean").clone()
        made.fit(made.stage("train", 0), 0, images)
        assert torch.equal(norm.get_buffer("running_mean"), before) == (batch_norm == "frozen")
        after = [
            stage for stage in made.method.stages(0) if isinstance(stage, Summarise) and stage.name == "recalibrate"
        ]
        assert bool(after) == (batch_norm == "reestimated")
        for stage in after:  # the first norm's mean is then that of its inputs, over the images of both sites
            assert isinstance(stage, Summarise)
            made.summarise(stage, [images.subset(range(10)), images.subset(range(10, 24))])
            maps = made.model.get_submodule("extractor.backbone.prefix.block0.0")(made.inputs(stage, images))
            torch.testing.assert_close(norm.get_buffer("running_mean"), maps.mean(dim=(0, 2, 3)))


def test_several_sites_freeze_statistics_unless_weights_are_random_or_it_is_said_otherwise(name: str) -> None:
    def asked(weights: str, sites: int = 2, **method: str) -> str:
        plain = {"name": "it", "data": {"dataset": "digits"}, "method": {"name": name, **method}}
        plain["federation"] = {"sites": sites}
        return str(resolve(plain | {"backbone": {"weights": weights}}, "test", {}).method.batch_norm)

    assert (asked("imagenet"), asked("random")) == ("frozen", "averaged")
    assert asked("imagenet", sites=1) == "averaged"
    assert asked("imagenet", batch_norm="averaged") == "averaged"
    assert asked("random", batch_norm="frozen") == "frozen"


def test_a_class_that_has_not_come_yet_is_an_error(name: str) -> None:
    made = grown(name, 2)
    with pytest.raises(ValueError, match=r"label 4 has no row in a head with the classes \(0, 1, 2, 3\)"):
        made.stage("train", 1).loss(made.model, torch.randn(2, 3, 16, 16), torch.tensor([0, 4]), LossContext(1))
