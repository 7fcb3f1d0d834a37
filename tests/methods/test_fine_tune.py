from __future__ import annotations

from method_bench import STREAM, bench, learn, rehearsal, toy_images


def test_it_trains_on_the_new_images_alone_and_keeps_none() -> None:
    made, held = bench("fine_tune"), rehearsal(2)
    assert made.stage("train", 2).learns_from(held) is held.new
    assert not made.method.uses_memory
    assert [stage.name for stage in made.method.all_stages(2)] == ["train", "evaluate"]


def test_it_learns_each_task_and_forgets_the_ones_before() -> None:
    made = bench("fine_tune", train={"rounds": 1, "epochs": 15, "learning_rate": 0.02})
    learn(made, 3)
    assert made.accuracy(toy_images(STREAM.classes(2), seed=1)) > 0.9
    assert made.accuracy(toy_images(STREAM.seen(1), seed=1)) < 0.1
