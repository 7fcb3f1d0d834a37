"""DynaMMo's adapters from task to task: inherited, merged, archived, recalibrated."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from method_bench import (
    CPU,
    STREAM,
    Bench,
    adapter_state,
    adapters,
    bench,
    finish_stage_1,
    grown,
    same,
    state,
    toy_images,
)
from numpy.typing import NDArray
from torch import Tensor, nn

from dynammo_core.data.samples import Samples
from dynammo_core.data.transforms import to_input
from dynammo_core.merging.averages import merge_mean
from dynammo_core.merging.task_sets import TaskSets
from dynammo_core.methods.adapters import AUXILIARY
from dynammo_core.models.heads import OTHERS

FIRST_STATISTICS = ("0.residual.1.running_mean", "0.residual.1.running_var")


def test_alphas_start_where_they_are_told_and_are_learnt() -> None:
    made = bench("dynammo", alpha=0.3)
    made.begin(0)
    alphas = [adapter.alpha for adapter in adapters(made)]
    assert [alpha.item() for alpha in alphas] == pytest.approx([0.3] * 3)
    made.fit(made.stage("adapt", 0), 0, toy_images((0, 1)))
    assert all(alpha.item() != pytest.approx(0.3, abs=1e-5) for alpha in alphas)
    assert all(isinstance(alpha, nn.Parameter) for alpha in alphas)


def test_each_set_starts_as_a_copy_of_the_set_before_not_of_the_merged_one() -> None:
    made, before = bench("dynammo"), None
    for task in range(4):
        made.begin(task)
        assert before is None or same(adapter_state(made), before)
        before = finish_stage_1(made, task)
        assert same(adapter_state(made), before) is (task == 0)


def test_the_merged_set_is_the_mean_of_all_sets() -> None:
    # Of one set, that set, bit for bit: merging one task is the identity.
    made, sets = bench("dynammo"), []
    for task in range(4):
        made.begin(task)
        sets.append(finish_stage_1(made, task))
        assert same(adapter_state(made), sets[0] if task == 0 else merge_mean(TaskSets(sets)))


def test_merge_last_deploys_the_newest_set() -> None:
    made = bench("dynammo", merge="last")
    for task in range(3):
        made.begin(task)
        assert same(finish_stage_1(made, task), adapter_state(made))


def test_the_archive_holds_every_set_as_it_was_learnt() -> None:
    made, learnt = bench("dynammo"), {}
    for task in range(3):
        made.begin(task)
        learnt |= {f"set{task}.{name}": tensor for name, tensor in finish_stage_1(made, task).items()}
    made.fit(made.stage("adapt", 2), 2, toy_images((4, 5)))  # what the model learns later does not reach it
    assert same(made.archive, learnt)


def test_eleven_sets_keep_apart() -> None:
    # set1 and set10 begin alike. Task t adds 0.5 * (t + 1)^2 to what the task before learnt, so the alphas of the sets
    # are 0.5 plus the running sums of that, and the merged alpha is their mean.
    made = bench("dynammo")
    made.method.stream = replace(STREAM, tasks=tuple((label,) for label in range(11)))
    for task in range(11):
        made.begin(task)
        finish_stage_1(made, task)
    sums = np.cumsum([0.5 * (task + 1) ** 2 for task in range(11)])
    assert adapters(made)[0].alpha.item() == pytest.approx(0.5 + sums.mean())


def test_only_the_end_of_stage_1_changes_anything() -> None:
    made = grown()
    before, archive = state(made), dict(made.archive)
    for stage in ("recalibrate", "balance", "remember", "evaluate"):
        made.finish(stage, 1)
    assert same(state(made), before)
    assert same(made.archive, archive)


def test_later_heads_are_copies_of_the_auxiliary_head_and_the_first_starts_anew() -> None:
    made = bench("dynammo")
    for task in range(3):
        made.begin(task)
        finish_stage_1(made, task)
        head, auxiliary = made.model.head(f"task{task}"), made.model.head(AUXILIARY)
        assert head.rows == auxiliary.rows == (*STREAM.classes(task), OTHERS)
        assert same(dict(head.state_dict()), dict(auxiliary.state_dict())) is (task > 0)
        assert head.weight.data_ptr() != auxiliary.weight.data_ptr()


def test_nothing_but_heads_grows_and_the_backbone_never_changes() -> None:
    made, shapes = bench("dynammo"), []
    backbone = {name: t.clone() for name, t in made.model.extractor.backbone.state_dict().items()}
    for task in range(4):
        made.begin(task)
        finish_stage_1(made, task)
        tensors = made.model.state_dict()
        shapes.append({name: t.shape for name, t in tensors.items() if not name.startswith("heads.task")})
        heads = [name for name in tensors if name.startswith("heads.task")]
        assert len(heads) == 2 * (task + 1)
    assert all(shape == shapes[0] for shape in shapes)
    assert same(dict(made.model.extractor.backbone.state_dict()), backbone)


# Recalibration


def recalibrated(made: Bench, batches: list[Samples]) -> dict[str, Tensor]:
    inputs = [(to_input(batch.images, "half", CPU), batch.labels) for batch in batches]
    with torch.no_grad():
        sums = made.stage("recalibrate", 1).computes(made.model.eval(), inputs)
    return {name.removeprefix("extractor.adapters."): tensor for name, tensor in sums.items()}


def entering(made: Bench, images: Samples) -> NDArray[np.float64]:
    """What the first adapter's first batch norm gets to see: [pixels, channels]."""
    maps = made.model.extractor.backbone.prefix(to_input(images.images, "half", CPU))
    return adapters(made)[0].residual[0](maps).transpose(0, 1).flatten(1).T.double().detach().numpy()


def test_statistics_are_those_of_all_batches_together() -> None:
    made = grown()
    batches = [toy_images((0, 1), each=20), toy_images((2,), each=7)]
    seen = np.concatenate([entering(made, batch) for batch in batches])
    mean, variance = (recalibrated(made, batches)[name].numpy() for name in FIRST_STATISTICS)
    # 40 and 7 images of 8 x 8 pixels: torch's factors n / (n - 1) of each batch are below 1 + 1/447.
    np.testing.assert_allclose(mean, seen.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(variance, seen.var(0), rtol=1 / 447 + 1e-4)


def test_with_them_evaluation_normalises_like_training() -> None:
    made, images = grown(), toy_images((0, 1, 2, 3), each=20)
    names = {name for name in adapters(made).state_dict() if "running" in name}
    inputs = to_input(images.images, "half", CPU)
    stale = made.model.eval().extractor(inputs).detach()
    statistics = recalibrated(made, [images])
    assert set(statistics) == names
    with torch.no_grad():
        normalised = made.model.train().extractor(inputs)
        adapters(made).load_state_dict(statistics, strict=False)
        fresh = made.model.eval().extractor(inputs)
    # Variances over 80 images of at least 2 x 2 pixels: the factor n / (n - 1) is at most 1 + 1/319.
    torch.testing.assert_close(fresh, normalised, rtol=0.01, atol=0.01 * normalised.abs().max().item())
    assert (stale - normalised).abs().max() > 0.05 * normalised.abs().max()


def test_recalibration_changes_statistics_alone() -> None:
    made = grown()
    before = state(made)
    recalibrated(made, [toy_images((0, 1))])
    after = state(made)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if "adapters" in name and "running" in name}
