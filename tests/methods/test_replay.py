from __future__ import annotations

from method_bench import STREAM, bench, learn, rehearsal, toy_images


def test_it_trains_on_the_new_images_and_every_exemplar() -> None:
    made, held = bench("replay"), rehearsal(2)
    trained = made.stage("train", 2).learns_from(held)
    assert trained.record_ids == held.new.record_ids + held.memory.record_ids
    # Classes 4 and 5 are new, 12 images each; 3 exemplars of each of the four before.
    assert trained.class_counts(8) == [3, 3, 3, 3, 12, 12, 0, 0]
    assert [stage.name for stage in made.method.all_stages(2)] == ["train", "remember", "evaluate"]


def test_a_site_without_new_images_trains_on_its_exemplars() -> None:
    made, held = bench("replay"), rehearsal(2, holds_new=False)
    assert made.stage("train", 2).learns_from(held).record_ids == held.memory.record_ids


def test_exemplars_keep_old_tasks_alive() -> None:
    made = bench("replay", train={"rounds": 1, "epochs": 15, "learning_rate": 0.02})
    learn(made, 3)
    assert made.accuracy(toy_images(STREAM.classes(2), seed=1)) > 0.9
    assert made.accuracy(toy_images(STREAM.seen(1), seed=1)) > 0.7
