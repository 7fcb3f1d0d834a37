from __future__ import annotations

from math import log

import pytest
import torch
from method_bench import CPU, STREAM, Bench, bench, learn, rehearsal, same, state, toy_images
from torch import Tensor

from dynammo_core.data.transforms import to_input
from dynammo_core.methods.adapters import AUXILIARY
from dynammo_core.methods.task_heads import start_head_from_auxiliary
from dynammo_core.models.adapters import AdapterSet
from dynammo_core.models.heads import OTHERS
from dynammo_core.models.incremental_model import AdaptedBackbone, ParallelBackbones
from dynammo_core.models.names import matching, travelling_names
from dynammo_core.plan import LossContext

BUDGET = {"alpha": 0.5, "adapt": {"epochs": 2}, "balance": {"epochs": 2}}


def begun(last: int) -> Bench:
    """Trained in the tasks before, at the beginning of the last one."""
    made = bench("acl", **BUDGET)
    learn(made, last)
    made.begin(last)
    return made


def passes(made: Bench) -> list[AdaptedBackbone]:
    assert isinstance(made.model.extractor, ParallelBackbones)
    return made.model.extractor.all_parts


def adapters(made: Bench, task: int) -> dict[str, Tensor]:
    held = passes(made)[task].adapters
    assert isinstance(held, AdapterSet)
    return {name: tensor.clone() for name, tensor in held.state_dict().items()}


@torch.no_grad()
def read_three_features(made: Bench, name: str) -> None:
    """The head's logits are the first three features that it sees."""
    head = made.model.head(name)
    head.get_parameter("bias").zero_()
    head.weight.copy_(torch.eye(64)[:3])


def two_passes(first: list[float], second: list[float]) -> Tensor:
    """Features Tensor[1, 128] whose heads say these probabilities, if each reads its own pass."""
    features = torch.zeros(1, 128)
    features[0, :3], features[0, 64:67] = torch.tensor(first).log(), torch.tensor(second).log()
    return features


# Each head sees its own pass


def test_stage_2_sums_the_cross_entropies_of_heads_on_their_own_passes_by_hand() -> None:
    # Head 0 (rows 0, 1, others) says 1/2, 1/4, 1/4 of the first pass, head 1 (rows 2, 3, others) 1/5, 3/5, 1/5 of the
    # second. Label 3 costs head 0, as others, ln 4 and head 1 ln(5/3); label 0 costs ln 2 and, as others, ln 5.
    made = begun(1)
    for name in ("task0", "task1"):
        read_three_features(made, name)
    features = two_passes([1 / 2, 1 / 4, 1 / 4], [1 / 5, 3 / 5, 1 / 5]).expand(2, -1)
    context = LossContext(1, "features")
    loss = made.stage("balance", 1).loss(made.model, features, torch.tensor([3, 0]), context).item()
    assert loss == pytest.approx((log(4) + log(5 / 3) + log(2) + log(5)) / 2)


def test_the_lowest_others_of_all_passes_names_the_task_by_hand() -> None:
    made = begun(1)
    for name in ("task0", "task1"):
        read_three_features(made, name)
    features = torch.cat(
        [
            two_passes([0.6, 0.3, 0.1], [0.1, 0.7, 0.2]),  # head 0 knows it better: class 0
            two_passes([0.2, 0.2, 0.6], [0.35, 0.25, 0.4]),  # head 1: class 2
        ]
    )
    prediction = made.method.decision.predict(made.model, features)
    assert prediction.labels.tolist() == [0, 2]
    assert prediction.probability.tolist() == pytest.approx([0.6, 0.35])
    assert prediction.known.tolist() == pytest.approx([0.9, 0.6])


def test_stage_1_is_the_auxiliary_heads_cross_entropy_of_the_newest_pass() -> None:
    made = begun(1)
    images = toy_images((2, 3, 0), each=2)
    loss = made.loss(made.stage("adapt", 1), 1, images)
    with torch.no_grad():
        for tensor in passes(made)[0].adapters.state_dict().values():
            tensor.add_(1)  # what the earlier pass says does not count
    assert made.loss(made.stage("adapt", 1), 1, images).item() == loss.item()
    # The auxiliary head says the same of every image: 1/2, 1/4, 1/4 of 2, 3 and others cost ln 2, ln 4, ln 4.
    with torch.no_grad():
        auxiliary = made.model.head(AUXILIARY)
        auxiliary.weight.zero_()
        auxiliary.get_parameter("bias").copy_(torch.tensor([1 / 2, 1 / 4, 1 / 4]).log())
    assert made.loss(made.stage("adapt", 1), 1, images).item() == pytest.approx(5 / 3 * log(2))


@torch.no_grad()
def test_passes_with_equal_adapters_say_what_one_pass_says() -> None:
    with torch.enable_grad():
        made = begun(1)
    images = to_input(toy_images((0, 1, 2)).images, "half", CPU)
    made.model.eval()
    first, second = passes(made)
    one = first(images)
    assert torch.equal(made.model.extractor(images), torch.cat([one, one], dim=1))  # task 1's set starts as task 0's
    second.adapters[0].alpha.add_(1)
    assert torch.equal(made.model.extractor(images)[:, :64], one)
    assert not torch.allclose(made.model.extractor(images)[:, 64:], one)


# From task to task


def test_each_set_starts_as_the_one_before_and_is_learnt_alone() -> None:
    made = bench("acl", **BUDGET)
    made.begin(0)
    for task in range(1, 4):
        with torch.no_grad():
            passes(made)[-1].adapters[0].alpha.add_(task)
        made.begin(task)
        assert same(adapters(made, task), adapters(made, task - 1))
    before = state(made)
    made.fit(made.stage("adapt", 3), 3, made.stage("adapt", 3).learns_from(rehearsal(3)))
    moved = {name for name, tensor in state(made).items() if not torch.equal(tensor, before[name])}
    assert moved == set(matching(before, ("extractor.parts.3.adapters.*", f"heads.{AUXILIARY}.*")))


def test_no_set_is_ever_merged_and_nothing_is_archived() -> None:
    made = bench("acl", **BUDGET)
    learn(made, 1)
    first = adapters(made, 0)
    learn(made, 3, first=1)
    assert same(adapters(made, 0), first)
    assert made.archive == {}
    assert len({part.backbone for part in passes(made)}) == 1


def test_the_heads_of_later_tasks_start_as_the_auxiliary_head() -> None:
    made = bench("acl")
    for task in range(3):
        made.begin(task)
        before = state(made)
        made.finish("adapt", task)
        head, auxiliary = made.model.head(f"task{task}"), made.model.head(AUXILIARY)
        assert head.rows == auxiliary.rows == (*STREAM.classes(task), OTHERS)
        assert same(dict(head.state_dict()), dict(auxiliary.state_dict())) is (task > 0)
        after = state(made)
        made.finish("balance", task)
        assert same(state(made), after)
        changed = {name for name in after if not torch.equal(after[name], before[name])}
        assert changed == ({f"heads.task{task}.weight", f"heads.task{task}.bias"} if task else set())
    start_head_from_auxiliary(made.model, {}, 0)  # which has never seen "others"
    assert same(state(made), after)


def test_what_travels() -> None:
    made = begun(2)
    names = travelling_names(made.model)
    sets = [set(matching(names, (f"extractor.parts.{task}.adapters.*",))) for task in range(3)]
    heads = {f"heads.task{task}.{tensor}" for task in range(3) for tensor in ("weight", "bias")}
    auxiliary = {f"heads.{AUXILIARY}.weight", f"heads.{AUXILIARY}.bias"}
    assert set(names) == set().union(*sets, heads, auxiliary)
    adapt, balance, evaluate = (made.stage(name, 2) for name in ("adapt", "balance", "evaluate"))
    assert set(matching(names, adapt.down)) == set(matching(names, adapt.up)) == sets[2] | auxiliary
    assert set(matching(names, balance.down)) == set().union(*sets) | heads
    assert set(matching(names, balance.up)) == heads
    assert set(matching(names, evaluate.down)) == set().union(*sets) | heads


def test_a_site_without_new_images_abstains_from_adapting_and_balances_with_its_memory() -> None:
    made, lacking = begun(2), rehearsal(2, holds_new=False)
    assert len(made.stage("adapt", 2).learns_from(lacking)) == 0
    assert made.stage("balance", 2).learns_from(lacking).record_ids == lacking.memory.record_ids
