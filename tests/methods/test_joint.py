from __future__ import annotations

from copy import deepcopy

import torch
from method_bench import STREAM, bench, learn, rehearsal, toy_images


def test_it_trains_on_every_image_ever_seen_and_needs_no_memory() -> None:
    made, held = bench("joint"), rehearsal(2)
    trained = made.stage("train", 2).learns_from(held)
    assert trained.class_counts(8) == [12] * 6 + [0, 0]
    assert len(set(trained.record_ids)) == len(trained)
    assert [stage.name for stage in made.method.all_stages(2)] == ["train", "evaluate"]


def test_a_site_without_new_images_trains_on_its_old_ones() -> None:
    made, held = bench("joint"), rehearsal(2, holds_new=False)
    assert made.stage("train", 2).learns_from(held) is held.seen


def test_it_knows_all_tasks() -> None:
    made = bench("joint", restart=False, train={"rounds": 1, "epochs": 15, "learning_rate": 0.02})
    learn(made, 3)
    assert made.accuracy(toy_images(STREAM.seen(2), seed=1)) > 0.9


def test_each_task_starts_from_the_pretrained_network_and_a_new_classifier_unless_it_goes_on() -> None:
    for restart in (True, False):
        made = bench("joint", restart=restart)
        made.begin(0)
        pretrained = deepcopy(made.model.extractor.state_dict())
        with torch.no_grad():
            for tensor in made.model.parameters():
                tensor.add_(1.0)
        learnt = made.head.weight.clone()
        made.begin(1)
        state = made.model.extractor.state_dict()
        assert all(torch.equal(state[name], tensor) for name, tensor in pretrained.items()) == restart
        assert made.head.rows == STREAM.seen(1)
        assert torch.equal(made.head.weight[:2], learnt) != restart
