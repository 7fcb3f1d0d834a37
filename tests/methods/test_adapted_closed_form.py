"""Adapters whose features are classified in closed form: merged ones with exemplars, and those of the first task."""

from __future__ import annotations

import pytest
import torch
from method_bench import STREAM, Bench, bench, learn, rehearsal, same, toy_images
from torch import Tensor

from dynammo_core.methods.closed_form import ridge_head
from dynammo_core.models.incremental_model import MultiScaleBackbone, ParallelBackbones
from dynammo_core.models.names import matching, travelling_names

QUICK = {"adapt": {"epochs": 2}, "alpha": 0.5}


def adapter_state(made: Bench) -> dict[str, Tensor]:
    tensors = made.model.state_dict()
    return {name: tensors[name].clone() for name in matching(tensors, ["extractor.*adapters.*"])}


def names(made: Bench, task: int) -> list[str]:
    return [stage.name for stage in made.method.all_stages(task)]


def test_stages_of_merged_adapters() -> None:
    made = bench("dynammo_ridge")
    assert names(made, 0) == ["adapt", "count", "sum", "remember", "evaluate"]
    assert names(made, 1) == ["adapt", "recalibrate", "count", "sum", "remember", "evaluate"]
    assert names(bench("dynammo_ridge", recalibrate=False), 1) == names(made, 0)


def test_sets_are_kept_and_merged_as_by_dynammo() -> None:
    made, paper = (bench(name, **QUICK, merge="magmax") for name in ("dynammo_ridge", "dynammo"))
    for each in (made, paper):
        learn(each, 2)
    assert {n.split(".")[0] for n in made.archive} == {"initial", "set0", "set1"}
    assert {n: t.shape for n, t in made.archive.items()} == {n: t.shape for n, t in paper.archive.items()}
    merged, newest = adapter_state(made), "set1.0.residual.0.weight"
    assert not torch.equal(merged["extractor.adapters.0.residual.0.weight"], made.archive[newest])


def test_classes_weigh_the_same_under_merged_adapters() -> None:
    made = bench("dynammo_ridge", **QUICK)
    learn(made, 1)
    made.begin(1)
    images = made.stage("sum", 1).learns_from(rehearsal(1))
    for name in ("count", "sum"):
        made.summarise(made.stage(name, 1), [images])
        made.finish(name, 1)
    # 12 new images and 3 exemplars of two classes each: 30 images, weights 30 / (4 * 12) and 30 / (4 * 3).
    assert made.head.counts.tolist() == [3, 3, 12, 12]
    assert ridge_head(made.model).sample_weight.tolist() == pytest.approx([2.5, 2.5, 0.625, 0.625])
    assert ridge_head(made.model).products[:, -1].tolist() == pytest.approx([7.5] * 4)


@pytest.mark.parametrize(("pooling", "times"), [("mean", 1), ("spread", 2), ("grid", 5)])
def test_the_bare_network_stands_beside(pooling: str, times: int) -> None:
    made = bench("dynammo_ridge", **QUICK, frozen_beside=True, pooling=pooling)
    made.begin(0)
    extractor, images = made.model.extractor, torch.randn(2, 3, 16, 16)
    assert isinstance(extractor, ParallelBackbones)
    bare, adapted = extractor.all_parts
    assert isinstance(bare, MultiScaleBackbone)
    assert (bare.adapters, bare.feature_dim) == (None, times * sum(bare.backbone.channels) + bare.backbone.feature_dim)
    features = made.model.eval().extractor(images)
    assert torch.equal(features, torch.cat([bare(images), adapted(images)], dim=1))
    assert not torch.equal(bare(images), adapted(images))


def test_the_first_session_alone_adapts() -> None:
    made = bench("first_session", **QUICK)
    assert names(made, 0) == ["adapt", "count", "sum", "evaluate"]
    assert names(made, 1) == ["count", "sum", "evaluate"]
    learn(made, 1)
    first = adapter_state(made)
    learn(made, 3, first=1)
    assert same(adapter_state(made), first)
    fresh = bench("first_session", **QUICK)
    fresh.begin(0)
    assert not same(adapter_state(fresh), first)


def test_sums_after_the_first_session_are_those_of_pooling_whatever_the_split_and_the_tasks() -> None:
    made = bench("first_session", **QUICK)
    learn(made, 1)
    adapted = adapter_state(made)
    heads = []
    for split in (1, 2, 5):
        other = bench("first_session", **QUICK)
        for task in range(3):
            other.begin(task)
            other.model.load_state_dict(adapted, strict=False)
            images = toy_images(STREAM.classes(task))
            sites = [images.subset(range(site, len(images), split)) for site in range(split)]
            for name in ("count", "sum"):
                other.summarise(other.stage(name, task), sites)
                other.finish(name, task)
        heads.append(ridge_head(other.model))
    for head in heads[1:]:
        torch.testing.assert_close(head.gram, heads[0].gram, rtol=1e-5, atol=1e-4)  # features are float32
        torch.testing.assert_close(head.weight, heads[0].weight, rtol=0, atol=1e-4)
        assert head.counts.tolist() == [12.0] * 6


def test_what_a_site_is_sent_to_sum() -> None:
    for name in ("first_session", "dynammo_ridge"):
        made = bench(name, **QUICK)
        made.begin(0)
        sent = matching(travelling_names(made.model), made.stage("sum", 0).down)
        assert {n for n in sent if "adapters" in n} == set(adapter_state(made))
        assert not any(n.endswith(("gram", "products")) for n in sent)


def test_merging_by_samples_needs_the_counts_of_the_tasks_own_classes() -> None:
    made = bench("dynammo", merge="weighted", recalibrate=False)
    sets = []
    for task, count in enumerate((10, 30)):
        made.begin(task)
        with torch.no_grad():
            for adapter in made.model.extractor.adapters:
                adapter.alpha.fill_(task)
        sets.append(made.model.extractor.adapters[0].alpha.item())
        counts = [0] * 8
        for label in STREAM.classes(task):
            counts[label] = count
        counts[7] = 1000  # exemplars and other classes do not weigh
        made.stage("adapt", task).note_counts(made.archive, task, counts)
        made.finish("adapt", task)
    # Alphas 0 and 1 with 20 and 60 images: 60 / 80.
    assert sets == [0.0, 1.0]
    assert made.model.extractor.adapters[0].alpha.item() == pytest.approx(0.75)
