from __future__ import annotations

from math import log

import pytest
import torch
from method_bench import STREAM, Bench, bench, rehearsal, same, state
from plain_networks import Swap, images_of, plain_extractor, plain_model, says
from torch import nn

from dynammo_core.methods.adapters import AUXILIARY
from dynammo_core.methods.decisions import CLASSES
from dynammo_core.models.heads import OTHERS, LinearHead
from dynammo_core.models.incremental_model import ParallelBackbones
from dynammo_core.models.names import matching, travelling_names
from dynammo_core.plan import LossContext

BUDGET = {"train": {"rounds": 1, "epochs": 2}, "balance": {"epochs": 2}}
PROBABILITIES = [1 / 2, 1 / 4, 1 / 8, 1 / 8]


def by_hand(name: str, probabilities: list[float], **params: object) -> float:
    """Two networks, of which the newer swaps the features; an image of class 2 and an exemplar of class 0."""
    made = bench("dynamic_er", **params)
    model = plain_model(LinearHead(4, (0, 1, 2, 3)), nn.Identity())
    says(model.head(CLASSES), probabilities)
    model.extractor = ParallelBackbones([plain_extractor(nn.Identity()), plain_extractor(Swap())])
    model.heads[AUXILIARY] = auxiliary = LinearHead(2, (2, 3, OTHERS))
    with torch.no_grad():
        auxiliary.weight.copy_(torch.tensor([[1.0, 0], [0, 1], [0, 0]]))
        auxiliary.bias.zero_()
    images, labels = images_of((log(3), log(2)), (log(3), log(2))), torch.tensor([2, 0])
    inputs = images if name == "train" else model.extractor(images)
    stage = made.stage(name, 1)
    return stage.loss(model, inputs, labels, LossContext(1, stage.inputs)).item()


@pytest.mark.parametrize("weight", [1.0, 0.0, 0.3])
def test_stage_1_by_hand(weight: float) -> None:
    # The classifier says 1/2, 1/4, 1/8, 1/8: labels 2 and 0 cost ln 8 and ln 2, a mean of 2 ln 2. The newest network's
    # features are ln 2, ln 3, so the auxiliary head says 2/6 of class 2, 3/6 of class 3, 1/6 of all others (the older
    # one's would make 3/6, 2/6): class 2 costs ln 3, the exemplar, as others, ln 6.
    expected = 2 * log(2) + weight * (log(3) + log(6)) / 2
    assert by_hand("train", PROBABILITIES, auxiliary=weight) == pytest.approx(expected)


def test_stage_2_by_hand() -> None:
    # A temperature of 5 makes fifth roots of what the classifier says, so of 5th powers the numbers themselves.
    expected = (log(8) + log(2)) / 2
    assert by_hand("balance", [p**5 for p in PROBABILITIES], temperature=5.0) == pytest.approx(expected)


# A network for each task


def begun(last: int) -> Bench:
    """Trained in the tasks before, at the beginning of the last one."""
    made = bench("dynamic_er", **BUDGET)
    for task in range(last):
        made.begin(task)
        for stage in made.fits(task):
            made.fit(stage, task, stage.learns_from(rehearsal(task)))
            made.finish(stage.name, task)
    made.begin(last)
    return made


def moved(made: Bench, stage: str, task: int) -> set[str]:
    """The tensors that a stage changes."""
    before, held = state(made), rehearsal(task)
    made.fit(made.stage(stage, task), task, made.stage(stage, task).learns_from(held))
    after = state(made)
    return {name for name in after if not torch.equal(after[name], before[name])}


def test_a_new_network_starts_as_the_last_one_with_every_head_row_as_it_was() -> None:
    made = bench("dynamic_er", **BUDGET)
    made.begin(0)
    made.fit(made.stage("train", 0), 0, rehearsal(0).new)
    extractor, head = {n: t for n, t in state(made).items() if "parts" in n}, made.head
    made.begin(1)
    parts = made.model.extractor.all_parts
    assert same(dict(parts[1].state_dict()), dict(parts[0].state_dict()))
    assert same({f"extractor.parts.0.{n}": t for n, t in parts[0].state_dict().items()}, extractor)
    assert {p.data_ptr() for p in parts[0].parameters()}.isdisjoint(p.data_ptr() for p in parts[1].parameters())
    assert made.model.feature_dim == 128
    assert made.head.rows == STREAM.seen(1)
    assert torch.equal(made.head.weight[:2, :64], head.weight)
    assert made.model.head(AUXILIARY).rows == (*STREAM.classes(1), OTHERS)


def test_earlier_networks_and_their_statistics_never_move() -> None:
    made = begun(2)
    names = set(made.model.state_dict())
    newest = {name for name in names if name.startswith("extractor.parts.2.")}
    assert any("running_var" in name for name in newest)
    heads = {f"heads.{head}.{tensor}" for head in (CLASSES, AUXILIARY) for tensor in ("weight", "bias")}
    assert moved(made, "train", 2) == newest | heads


def test_stage_2_moves_the_classifier_and_not_one_statistic() -> None:
    made = begun(1)
    made.fit(made.stage("train", 1), 1, rehearsal(1).new)
    made.finish("train", 1)
    assert moved(made, "balance", 1) == {f"heads.{CLASSES}.weight", f"heads.{CLASSES}.bias"}
    balanced = made.stage("balance", 1).learns_from(rehearsal(1))
    assert balanced.class_counts(8) == [3, 3, 3, 3, 0, 0, 0, 0]


def test_stage_2_starts_from_a_classifier_drawn_anew() -> None:
    made = begun(1)
    trained = made.head.weight.detach().clone()
    made.finish("train", 1)
    assert made.head.rows == STREAM.seen(1)
    assert not (made.head.weight == trained).any()
    drawn = state(made)
    made.finish("balance", 1)
    assert same(state(made), drawn)


def test_the_first_task_has_one_stage_and_keeps_its_classifier() -> None:
    made = begun(0)
    assert [stage.name for stage in made.fits(0)] == ["train"]
    before = state(made)
    made.finish("train", 0)
    assert same(state(made), before)


def test_what_travels() -> None:
    made = begun(2)
    names = travelling_names(made.model)
    heads = {f"heads.{head}.{tensor}" for head in (CLASSES, AUXILIARY) for tensor in ("weight", "bias")}
    networks = {name for name in names if name.startswith("extractor.")}
    train, balance = (made.stage(name, 2) for name in ("train", "balance"))
    assert set(matching(names, train.down)) == networks | heads
    assert set(matching(names, train.up)) == {n for n in networks if n.startswith("extractor.parts.2.")} | heads
    classifier = {f"heads.{CLASSES}.weight", f"heads.{CLASSES}.bias"}
    assert set(matching(names, balance.down)) == networks | classifier
    assert set(matching(names, balance.up)) == classifier
    assert set(matching(names, made.method.deployed)) == networks | classifier


def test_eleven_networks_keep_apart() -> None:
    """parts.1 and parts.10 begin alike: what task 1 trains is not what task 10 trains."""
    stage = bench("dynamic_er").method.stages(1)[0]
    names = [f"extractor.parts.{part}.backbone.prefix.block0.0.weight" for part in (1, 10)]
    assert matching(names, stage.up) == names[:1]
