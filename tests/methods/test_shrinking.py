"""The closed form on exemplars and new images, shrunk towards zero or the classifier before."""

from __future__ import annotations

import pytest
import torch
from method_bench import Bench, bench, learn_sums, rehearsal
from pydantic import ValidationError
from torch import Tensor

from dynammo_core.methods.closed_form import DEVIATIONS, ridge_head
from dynammo_core.methods.settings.closed_form import RidgeSettings


def learnt(regulariser: float, what: str, tasks: int = 2) -> Bench:
    made = bench("ridge", regulariser=regulariser, shrink_towards=what)
    for task in range(tasks):
        learn_sums(made, task, [made.stage("sum", task).learns_from(rehearsal(task))], ("count", "sum"))
    return made


def test_weights_of_earlier_classes_stay_near_those_of_the_classifier_before() -> None:
    """Far apart where little is shrunk, and where all is, the same but for features that vary more than before.

    A new class's are near zero there.
    """
    for regulariser, stays in ((1e9, True), (0.1, False)):
        made = learnt(0.1, "earlier", tasks=1)
        earlier, before = made.head.weight.clone(), ridge_head(made.model).deviations()
        made.method.params = made.method.params.model_copy(update={"regulariser": regulariser})
        images = made.stage("sum", 1).learns_from(rehearsal(1))
        learn_sums(made, 1, [images], ("count", "sum"))
        quieter = before / ridge_head(made.model).deviations()
        kept = earlier * quieter.nan_to_num(1.0).clamp_max(1).float()
        assert torch.allclose(made.head.weight[:2], kept, atol=1e-6) is stays
        assert bool(made.head.weight[2:].abs().max() < 1e-6) is stays


def drawn(made: Bench, each: dict[int, int], quiet: float) -> tuple[Tensor, Tensor]:
    """Features of so many images of each class; the first varies `quiet` times as much for the first two classes."""
    generator = torch.Generator().manual_seed(sum(each.values()))
    centres = 0.6 * torch.randn(4, made.model.feature_dim, generator=torch.Generator().manual_seed(4))
    labels = torch.cat([torch.full((count,), label) for label, count in each.items()])
    features = centres[labels] + torch.randn(len(labels), made.model.feature_dim, generator=generator)
    loud = torch.rand(len(labels), generator=generator)
    features[:, 0] = torch.where(labels < 2, quiet * loud * (labels == 0), loud)
    return features, labels


def test_a_feature_that_only_new_classes_excite_drowns_no_other() -> None:
    """Its weight, which the quiet feature needed to tell anything, is not taken over as it is."""
    recalls = []
    for what, quiet in (("zero", 1e-4), ("earlier", 1e-4), ("earlier", 1.0)):
        made = bench("ridge", regulariser="dimension", shrink_towards=what)
        for task, each in enumerate(({0: 200, 1: 200}, {0: 10, 1: 10, 2: 200, 3: 200})):
            made.begin(task)
            head = ridge_head(made.model)
            head.counts.copy_(torch.tensor(list(each.values())))
            made.finish("count", task)
            head.counts.zero_()
            head.add(*drawn(made, each, quiet))
            made.finish("sum", task)
            if what == "earlier":  # the next classifier compares with these, not with the first ones
                assert torch.equal(made.archive[DEVIATIONS], head.deviations())
        tests, labels = drawn(made, dict.fromkeys(range(4), 300), quiet)
        assert made.head(tests).abs().max() < 3
        recalls.append(float((made.head(tests).argmax(dim=1) == labels).double().mean()))
    assert recalls[1] > recalls[0] - 0.01
    assert abs(recalls[2] - recalls[1]) < 0.03


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
