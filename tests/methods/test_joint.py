from __future__ import annotations

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
    made = bench("joint", train={"rounds": 1, "epochs": 15, "learning_rate": 0.02})
    learn(made, 3)
    assert made.accuracy(toy_images(STREAM.seen(2), seed=1)) > 0.9
