from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from method_bench import STREAM, bench, rehearsal
from torch import nn

from dynammo_core.configuration.settings import MethodSettings
from dynammo_core.methods.base import CLASSES, Method
from dynammo_core.models.heads import LinearHead
from dynammo_core.plan import Action


class Nothing(Method):
    """Overrides no hook."""

    name = "nothing"
    paper_url = ""
    Params = MethodSettings


class Forgetful(Nothing):
    """Keeps no exemplars and has no training stage."""

    uses_memory = False

    def stages(self, task: int) -> tuple[()]:
        return ()


def test_the_default_answer_is_the_most_probable_row_by_hand() -> None:
    # Rows of the classes 3, 0, 6. Logits ln 1, ln 6, ln 1 make 6/8 of class 0; ln 3, ln 1, ln 6 make 6/10 of class 6.
    made = bench(Nothing)
    made.model.heads[CLASSES] = head = LinearHead(64, (3, 0, 6))
    nn.init.eye_(head.weight)
    nn.init.zeros_(head.bias)
    features = torch.zeros(2, 64)
    features[:, :3] = torch.tensor([[1.0, 6, 1], [3, 1, 6]]).log()
    prediction = made.method.predict(made.model, features)
    assert prediction.labels.tolist() == [0, 6]
    assert prediction.probability.tolist() == pytest.approx([0.75, 0.6])
    assert torch.equal(prediction.known, prediction.probability)


def test_after_the_training_stages_sites_remember_and_evaluate() -> None:
    stages = bench(Forgetful).method.all_stages(0)
    assert [stage.action for stage in stages] == [Action.EVALUATE]
    (fit,) = bench("replay").method.stages(0)
    assert [stage.action for stage in bench("replay").method.all_stages(0)] == [
        fit.action,
        Action.REMEMBER,
        Action.EVALUATE,
    ]
    for stage in (*stages, *bench("replay").method.all_stages(0)[1:]):
        assert stage.up == ()  # neither exemplars nor anything trained leaves the site
        assert stage.down == Method.deployed


def test_a_site_trains_on_its_new_images_by_default() -> None:
    held = rehearsal(1)
    assert bench(Forgetful).method.training_set(bench("replay").stage("train", 1), held) is held.new


def test_balanced_sets_repeat_and_differ_between_tasks_and_sites() -> None:
    held = replace(rehearsal(1), new=rehearsal(2).seen)
    drawn = held.balanced().record_ids
    assert held.balanced().record_ids == drawn
    assert replace(held, task=2).balanced().record_ids != drawn
    assert replace(held, seed=6).balanced().record_ids != drawn


def test_a_hook_that_is_missing_is_named() -> None:
    made = bench(Nothing)
    stage = bench("replay").stage("train", 0)
    calls = {
        "which stages": lambda: made.method.stages(0),
        "how the model grows": lambda: made.begin(0),
        "what it minimises": lambda: made.method.loss(made.model, None, None, None),  # type: ignore[arg-type]
        "no stage that summarises": lambda: made.method.summarise(made.model, [], stage),
    }
    for words, call in calls.items():
        with pytest.raises(NotImplementedError, match=f"Nothing .*{words}"):
            call()


def test_a_method_knows_its_stream_and_parameters() -> None:
    made = bench("replay", train={"rounds": 3})
    assert made.method.stream is STREAM
    assert made.method.stages(0)[0].rounds == 3
