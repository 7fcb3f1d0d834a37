from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from method_bench import STREAM, bench, rehearsal
from torch import nn

from dynammo_core.configuration.settings import MethodSettings
from dynammo_core.methods import METHODS, settings_of
from dynammo_core.methods.base import Method
from dynammo_core.methods.decisions import CLASSES, DecisionRule
from dynammo_core.methods.rehearsal import Rehearsal, balanced, everything_seen, if_it_holds, new_images, of_classes
from dynammo_core.models.heads import LinearHead
from dynammo_core.models.incremental_model import IncrementalModel
from dynammo_core.plan import Action, Remember, Stage, Summarise


class IdleSettings(MethodSettings):
    patience: int = 3


class Idle(Method[IdleSettings]):
    """Learns nothing and keeps nothing."""

    name = "idle"
    paper_url = ""

    def grow(self, model: IncrementalModel, task: int) -> None:
        model.heads[CLASSES] = LinearHead(model.feature_dim, self.stream.seen(task))

    def stages(self, task: int) -> Sequence[Stage]:
        return ()


class Remembering(Idle):
    """Keeps exemplars, learns nothing."""

    def stages(self, task: int) -> Sequence[Stage]:
        return (Remember(down=self.deployed),)


def test_the_default_decision_is_the_most_probable_row_by_hand() -> None:
    # Rows of the classes 3, 0, 6. Logits ln 1, ln 6, ln 1 make 6/8 of class 0; ln 3, ln 1, ln 6 make 6/10 of class 6.
    made = bench(Idle)
    made.model.heads[CLASSES] = head = LinearHead(64, (3, 0, 6))
    nn.init.eye_(head.weight)
    nn.init.zeros_(head.bias)
    features = torch.zeros(2, 64)
    features[:, :3] = torch.tensor([[1.0, 6, 1], [3, 1, 6]]).log()
    prediction = DecisionRule().predict(made.model, features)
    assert prediction.labels.tolist() == [0, 6]
    assert prediction.probability.tolist() == pytest.approx([0.75, 0.6])
    assert torch.equal(prediction.known, prediction.probability)


def test_every_task_ends_with_an_evaluation_and_a_memory_is_a_stage_that_remembers() -> None:
    for method, uses, actions in ((Idle, False, []), (Remembering, True, [Action.REMEMBER])):
        made = bench(method).method
        assert made.uses_memory is uses
        stages = made.all_stages(0)
        assert [stage.action for stage in stages] == [*actions, Action.EVALUATE]
        for stage in stages:
            assert stage.up == ()  # neither exemplars nor anything trained leaves the site
            assert stage.down == Method.deployed
            assert stage.inputs == "features"


def test_a_method_takes_its_parameters_from_the_brackets_of_its_own_or_its_base() -> None:
    assert Idle.Params is Remembering.Params is IdleSettings
    assert bench(Idle, patience=5).method.params == IdleSettings(name="idle", patience=5)


@pytest.mark.parametrize("missing", ["grow", "stages"])
def test_a_method_that_lacks_a_part_cannot_be_made(missing: str) -> None:
    parts = {name: vars(Idle)[name] for name in ("name", "grow", "stages") if name != missing}
    half = type("Half", (Method,), {**parts, "Params": IdleSettings})
    with pytest.raises(TypeError, match=rf"abstract class Half .*{missing}"):
        bench(half)


def test_balanced_sets_repeat_and_differ_between_tasks_and_sites() -> None:
    held = replace(rehearsal(1), new=rehearsal(2).seen)
    drawn = balanced(held).record_ids
    assert balanced(held).record_ids == drawn
    assert balanced(replace(held, task=2)).record_ids != drawn
    assert balanced(replace(held, seed=6)).record_ids != drawn


@pytest.mark.parametrize(
    ("choose", "counts"),
    [
        (new_images, [0, 0, 12, 12]),
        (everything_seen, [12, 12, 12, 12]),
        (if_it_holds((2,)), [3, 3, 12, 12]),
        (if_it_holds((0,)), [0, 0, 0, 0]),  # class 0 is in the memory alone
        (of_classes((3,)), [0, 0, 0, 12]),
        (of_classes((0,)), [0, 0, 0, 0]),
    ],
)
def test_choices_of_a_training_set(choose: Callable[[Rehearsal], object], counts: list[int]) -> None:
    assert choose(rehearsal(1)).class_counts(4) == counts  # type: ignore[attr-defined]


def test_a_method_knows_its_stream_and_parameters() -> None:
    made = bench("replay", train={"rounds": 3})
    assert made.method.stream is STREAM
    assert made.method.stages(0)[0].rounds == 3


@pytest.mark.parametrize("name", METHODS)
def test_parameters_are_found_without_the_method(name: str) -> None:
    assert settings_of(name, "method.name") is METHODS[name].Params


@pytest.mark.parametrize("name", METHODS)
def test_what_settings_say_of_forgetting_is_what_the_stages_do(name: str) -> None:
    stages = [stage for task in range(2) for stage in bench(name).method.stages(task)]
    corrections = [stage.correction() for stage in stages if isinstance(stage, Summarise)]
    assert any(corrections) is METHODS[name].Params.forgets
    for correction in filter(None, corrections):
        assert correction.action is Action.FORGET
        assert correction.keeps_sums


@pytest.mark.parametrize("name", METHODS)
def test_a_method_that_can_be_private_has_a_private_twin_of_all_that_it_computes(name: str) -> None:
    group = {"norm": "group"} if "norm" in METHODS[name].Params.model_fields else {}
    made = bench(name, **group).method
    if made.params.obstacle_to_privacy("example"):
        return
    for stage in made.stages(1):
        assert not isinstance(stage, Summarise) or stage.computes_privately is not Summarise.computes_privately


@pytest.mark.parametrize("name", ["governance", "forgets", "outlives_network", "misfit", "obstacle_to_privacy"])
def test_what_belongs_to_the_settings_is_refused_on_the_method(name: str) -> None:
    """Ignored there, it would promise an auditor or an operator what nothing checks."""
    with pytest.raises(TypeError, match=f"the method Old says {name} itself, where nobody asks for it: its settings"):
        type("Old", (Idle,), {name: True})
