"""Fisher merging, operators by insertion point and folded alphas, in the methods that merge, and in a run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from method_bench import (
    Bench,
    adapter_state,
    adapters,
    bench,
    finish_stage_1,
    learn,
    rehearsal,
    same,
    toy_images,
)
from safetensors.torch import load_file
from small_runs import events, run_small, small_config
from torch import Tensor

from dynammo_core.aggregation import AGGREGATORS
from dynammo_core.aggregation.class_aware import Update
from dynammo_core.configuration.config import Scalar
from dynammo_core.data.samples import Samples
from dynammo_core.merging.averages import merge_last, merge_mean
from dynammo_core.merging.fisher import comparable, merge_fisher
from dynammo_core.merging.task_sets import TaskSets
from dynammo_core.models.adapters import folded_alphas
from dynammo_core.support.errors import ConfigError

MERGING = pytest.mark.parametrize("method", ["dynammo", "dynammo_ridge"])


def archived(archive: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in archive.items() if name.startswith(prefix)}


def close(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


# The Fisher information


def asked(sites: list[Samples], **params: object) -> tuple[Bench, dict[str, Tensor]]:
    """After `adapt` in the first task, and what the server makes of the sites' answers then."""
    made = bench("dynammo", merge="fisher", adapt={"epochs": 2, "learning_rate": 0.02}, **params)
    made.begin(0)
    made.fit(made.stage("adapt", 0), 0, toy_images((0, 1)))
    made.finish("adapt", 0)
    return made, made.summarise(made.stage("fisher", 0), sites)


@MERGING
def test_a_stage_of_its_own_where_it_is_asked_for_and_nowhere_else(method: str) -> None:
    plain, listed = (bench(method, merge=merge) for merge in ("ties", ("mean", "fisher", "last")))
    for task in range(2):
        stages = list(listed.method.all_stages(task))
        assert [stage.name for stage in stages[:2]] == ["adapt", "fisher"]
        assert [*stages[:1], *stages[2:]] == list(plain.method.all_stages(task))
    held = rehearsal(1)
    adapt, fisher = (listed.stage(name, 1).learns_from(held) for name in ("adapt", "fisher"))
    assert fisher.record_ids == adapt.record_ids
    assert not len(listed.stage("fisher", 1).learns_from(rehearsal(1, holds_new=False)))


def test_of_several_sites_it_is_that_of_their_images_pooled() -> None:
    images = toy_images((0, 1), each=9)
    _, pooled = asked([images])
    for sizes in ((1, 17), (5, 6, 7)):  # by samples, not by sites
        parts = torch.arange(18).split(sizes)
        _, split = asked([images.subset(part) for part in parts])
        close(split, pooled)
    assert min(tensor.min().item() for tensor in pooled.values()) >= 0
    assert all(tensor.any() for tensor in pooled.values())


def test_it_reads_no_label() -> None:
    images = toy_images((0, 1))
    _, found = asked([images])
    _, other = asked([Samples(images.images, images.labels.flip(0), images.record_ids)])
    close(other, found)


def test_sites_answer_under_the_adapters_names_and_the_server_puts_that_aside() -> None:
    made, answered = asked([toy_images((0, 1))])
    tuned = archived(made.archive, "set0.")
    assert {name.removeprefix("extractor.adapters.") for name in answered} == {n for n in tuned if "running" not in n}
    made.finish("fisher", 0)
    assert same(adapter_state(made), tuned)
    stripped = {name.removeprefix("extractor.adapters."): tensor for name, tensor in answered.items()}
    assert same(archived(made.archive, "fisher0."), comparable(stripped))


@MERGING
def test_sets_are_merged_by_it(method: str) -> None:
    made = bench(method, merge="fisher", recalibrate=False)
    learn(made, 3)
    sets, importance = ([archived(made.archive, f"{kind}{t}.") for t in range(3)] for kind in ("set", "fisher"))
    assert same(adapter_state(made), merge_fisher(TaskSets(sets, importance=importance)))
    assert not any(same(importance[0], other) for other in importance[1:])


# Each insertion point


def test_a_list_merges_each_adapter_by_its_own_operator() -> None:
    made, sets = bench("dynammo", merge=("mean", "last", "last")), []
    for task in range(3):
        made.begin(task)
        sets.append(finish_stage_1(made, task))
    mean, last = merge_mean(TaskSets(sets)), merge_last(TaskSets(sets))
    assert same(adapter_state(made), {name: (mean if name[0] == "0" else last)[name] for name in mean})


def test_what_one_operator_of_a_list_needs_is_kept() -> None:
    # `ties` needs the initial set, `weighted` the numbers of samples; without either it would fail.
    made = bench("dynammo", merge=("ties", "weighted", "fisher"))
    for task in range(2):
        made.begin(task)
        made.stage("adapt", task).note_counts(made.archive, task, [1 + task] * 8)
        finish_stage_1(made, task)
        made.finish("fisher", task)
    assert {name.partition(".")[0] for name in made.archive} == {
        *("initial", "set0", "set1", "fisher0", "fisher1", "samples0", "samples1")
    }


# Alphas


def test_folded_alphas_are_merged_as_what_they_multiply() -> None:
    made, sets = bench("dynammo", merge_alpha="fold"), []
    for task in range(3):
        made.begin(task)
        assert not task or same(adapter_state(made), sets[-1])  # sets are inherited as they were learnt
        sets.append(finish_stage_1(made, task))
        assert same(archived(made.archive, f"set{task}."), sets[-1])
        if task == 0:
            assert same(adapter_state(made), sets[0])
    assert same(adapter_state(made), merge_mean(TaskSets([folded_alphas(own) for own in sets])))
    # Alphas 0.5 + 0.5, + 2, + 4.5, beside scales of 1 + the same, all positive: the mean of the products.
    learnt = [0.5, 2.5, 7.0]
    products = sum((0.5 + x) * (1 + x) for x in learnt) / 3
    assert adapters(made)[1].alpha.item() == 1
    assert adapters(made)[1].residual[4].weight[0].item() == pytest.approx(products)


def test_sites_derive_by_what_is_merged() -> None:
    # g' = alpha g, so dL/dg' = dL/dg / alpha, and its square by alpha^2.
    images = [toy_images((0, 1))]
    (plain, unfolded), (made, folded) = (asked(images, merge_alpha=way) for way in ("average", "fold"))
    alpha, name = plain.archive["set0.1.alpha"], "extractor.adapters.1.residual.4.weight"
    torch.testing.assert_close(folded[name], unfolded[name] / alpha.square(), rtol=1e-4, atol=0)
    made.finish("fisher", 0)
    assert same(adapter_state(made), archived(made.archive, "set0."))


# What does not fit


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"method.merge": "[mean, last]"}, "2 operators, but the backbone has 3 insertion points"),
        ({"method.merge": "[]"}, "0 operators, but the backbone has 3"),
        ({"method.merge": "fisher", "federation.compression": "float16"}, "federation.compression: float16"),
        ({"method.merge": "[last, last, fisher]", "federation.compression": "int8"}, "federation.compression: int8"),
        ({"method.merge": "fisher", "federation.aggregator": "norm_clipping"}, "aggregator: norm_clipping"),
        ({"method.merge": "fisher", "privacy.mechanism": "client", "method.norm": "group"}, "no noise hides an image"),
        ({"method.merge": "fisher", "privacy.mechanism": "example", "method.norm": "group"}, "no noise hides an image"),
    ],
    ids=["short", "empty", "float16", "int8", "clipped", "client", "example"],
)
def test_what_makes_no_sense_is_refused(overrides: dict[str, Scalar], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        small_config("dynammo", overrides)


def test_and_what_does_make_sense_is_not() -> None:
    assert small_config("dynammo", {"method.merge": "last", "federation.compression": "int8"})
    assert small_config("dynammo", {"method.merge": "[last, mean, slerp]"}).method.merge == ("last", "mean", "slerp")


# A run: the real server and sites, and Flower's own messages


def test_a_run_of_two_sites_merges_by_fisher(tmp_path: Path) -> None:
    overrides: dict[str, Scalar] = {"method.merge": "fisher", "federation.sites": 2, "method.recalibrate": False}
    run = run_small(small_config("dynammo", overrides), tmp_path).path
    steps = [event for event in events(run, "step_finished") if event["stage"] == "fisher"]
    assert [event["task"] for event in steps] == [0, 1]
    assert not any(event["failures"] for event in steps)
    assert sum(not site["abstained"] for site in steps[0]["sites"]) == 2
    kept = archived(load_file(run / "checkpoints" / "latest.safetensors"), "archive/")
    sets, importance = ([archived(kept, f"{kind}{t}.") for t in range(2)] for kind in ("set", "fisher"))
    merged = merge_fisher(TaskSets(sets, importance=importance))
    deployed = archived(load_file(run / "model.safetensors"), "extractor.adapters.")
    assert same(deployed, merged)
    close_to_mean = [torch.allclose(merged[name], tensor) for name, tensor in merge_mean(TaskSets(sets)).items()]
    assert not all(close_to_mean)


def test_under_masks_it_is_the_same_but_for_rounding(tmp_path: Path) -> None:
    # Fixed point of 2^-31 for three sites, over 40 samples: 4e-11 beside a root mean square of some 1e-4 and more.
    short: dict[str, Scalar] = {"method.merge": "fisher", "tasks.sizes": "[2]", "tasks.class_order": "[0, 1]"}
    found = []
    for secure in (False, True):
        config = small_config(
            "dynammo", {**short, "federation.partition": "iid", "federation.secure_aggregation": secure}
        )
        kept = load_file(run_small(config, tmp_path).path / "checkpoints" / "latest.safetensors")
        found.append(archived(kept, "archive/fisher0."))
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("aggregator", ["median", "trimmed_mean", "krum", "multi_krum"])
def test_aggregators_that_choose_choose_among_what_sites_say(aggregator: str) -> None:
    made, _ = asked([toy_images((0, 1))])
    stage, sites = made.stage("fisher", 0), [toy_images((0, 1), each=5, seed=seed) for seed in range(5)]
    answers = []
    for images in sites:
        with torch.no_grad():
            answers.append(stage.computes(made.model, [(made.inputs(stage, images), images.labels)]))
    updates = [Update(answer, [5, 5, *[0] * 6]) for answer in answers]
    chosen = AGGREGATORS[aggregator](1, True)(updates, {}, made.model.state_dict())
    for name, tensor in chosen.items():
        said = torch.stack([answer[name] for answer in answers])
        slack = 1e-6 * made.model.state_dict()[name].abs().max()  # they choose among differences from the weights
        assert (tensor >= said.amin(dim=0) - slack).all()
        assert (tensor <= said.amax(dim=0) + slack).all()
