"""The closed form on exemplars and new images, shrunk towards zero or the classifier before."""

from __future__ import annotations

import pytest
import torch
from method_bench import Bench, bench, learn_sums, rehearsal
from pydantic import ValidationError

from dynammo_core.methods.settings.closed_form import RidgeSettings


def learnt(regulariser: float, what: str, tasks: int = 2) -> Bench:
    made = bench("ridge", regulariser=regulariser, shrink_towards=what)
    for task in range(tasks):
        learn_sums(made, task, [made.stage("sum", task).learns_from(rehearsal(task))], ("count", "sum"))
    return made


def test_weights_of_earlier_classes_stay_near_those_of_the_classifier_before() -> None:
    """Far apart where little is shrunk, and the same where all is; a new class's are near zero there."""
    for regulariser, stays in ((1e9, True), (0.1, False)):
        made = learnt(0.1, "earlier", tasks=1)
        earlier = made.head.weight.clone()
        made.method.params = made.method.params.model_copy(update={"regulariser": regulariser})
        images = made.stage("sum", 1).learns_from(rehearsal(1))
        learn_sums(made, 1, [images], ("count", "sum"))
        assert torch.allclose(made.head.weight[:2], earlier, atol=1e-6) is stays
        assert bool(made.head.weight[2:].abs().max() < 1e-6) is stays


def test_by_default_every_classifier_is_solved_from_its_images_alone() -> None:
    made, alone = learnt(0.1, "zero"), bench("ridge", regulariser=0.1)
    alone.begin(0)
    learn_sums(alone, 1, [alone.stage("sum", 1).learns_from(rehearsal(1))], ("count", "sum"))
    assert torch.equal(made.head.weight, alone.head.weight)
    assert not torch.equal(learnt(0.1, "earlier").head.weight, made.head.weight)


def test_what_does_not_go_with_the_classifier_before_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"earlier needs method.regulariser: dimension, or a number"):
        RidgeSettings(name="ridge", shrink_towards="earlier")
    params = RidgeSettings(name="ridge", shrink_towards="earlier", regulariser=0.1)
    assert "set method.shrink_towards: zero" in params.obstacle_to_privacy("example")
    assert "set method.shrink_towards: zero" not in RidgeSettings(name="ridge").obstacle_to_privacy("example")
