from __future__ import annotations

from math import exp, log, sqrt

import pytest
import torch
from method_bench import bench
from plain_networks import Swap, cosine_head, images_of, plain_model
from torch import Tensor, nn

from dynammo_core.methods.decisions import CLASSES
from dynammo_core.methods.distillation import cosine_distance
from dynammo_core.methods.lucir import margin_ranking
from dynammo_core.models.incremental_model import IncrementalModel
from dynammo_core.plan import LossContext

# Vectors of the old classes 0 and 1 and the new ones 2 and 3; lengths do not count.
VECTORS = [[1.0, 0.0], [0.0, 5.0], [0.6, 0.8], [-2.0, 0.0]]
# An image of class 0 with the cosines 1, 0, 0.6, -1, one of class 1 with the cosines 1, 0, 0.6, -1 as well, and one of
# class 2 with the cosines 0, 1, 0.8, 0.
IMAGES, LABELS = images_of((2, 0), (1, 0), (0, 3)), torch.tensor([0, 1, 2])


def loss(
    images: Tensor = IMAGES,
    labels: Tensor = LABELS,
    *,
    scale: float = 2.0,
    vectors: list[list[float]] = VECTORS,
    task: int = 1,
    teacher: nn.Module | None = None,
    **params: object,
) -> float:
    made = bench("lucir", **params)
    taught = IncrementalModel(plain_model(cosine_head(VECTORS, scale=1.0), teacher).extractor.backbone)
    model = plain_model(cosine_head(vectors, scale=scale), nn.Identity())
    context = LossContext(task, "images", taught.eval() if teacher else None)
    return made.stage("train", task).loss(model, images, labels, context).item()


def test_the_first_task_is_the_cross_entropy_of_scaled_cosines_by_hand() -> None:
    # Scale ln 4 and cosines 1 and 0 of two classes: 4/5 and 1/5. Labels 0 and 1 cost ln(5/4) and ln 5.
    value = loss(IMAGES[:2], LABELS[:2], scale=log(4), vectors=VECTORS[:2], task=0)
    assert value == pytest.approx((log(5 / 4) + log(5)) / 2)


# Of all four classes, scaled by 2: exp(2 * cosine) of the first two images, and of the third.
FIRST, THIRD = exp(2) + 1 + exp(1.2) + exp(-2), 1 + exp(2) + exp(1.6) + 1
CLASSIFICATION = (log(FIRST) - 2 + log(FIRST) - 0 + log(THIRD) - 1.6) / 3


def test_the_loss_by_hand() -> None:
    # The teacher swaps the two features, so its own are at right angles to the model's: 1 - cos = 1 for each image.
    # Two old classes over two new ones: lambda is 5 * sqrt(1).
    # Ranking, margin 0.5, K = 2, exemplars alone: label 0 has 0.5 - 1 + 0.6 = 0.1 and 0.5 - 1 - 1 < 0, label 1 has
    # 0.5 - 0 + 0.6 = 1.1 and 0.5 - 0 - 1 < 0: a mean of 1.2 / 4 = 0.3. The image of class 2 would add 0.5 - 0.8 + 1.
    assert loss(teacher=Swap()) == pytest.approx(CLASSIFICATION + 5 + 0.3)


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"less_forget": 2.0}, 2 + 0.3),
        ({"hard_negatives": 1}, 5 + (0.1 + 1.1) / 2),
        ({"hard_negatives": 9}, 5 + 0.3),  # there are but two new classes
        ({"margin": 0.0}, 5 + 0.6 / 4),
        ({"margin": 2.0}, 5 + (1.6 + 0 + 2.6 + 1.0) / 4),
    ],
)
def test_every_parameter_counts_by_hand(params: dict[str, object], expected: float) -> None:
    assert loss(teacher=Swap(), **params) == pytest.approx(CLASSIFICATION + expected)


def test_what_the_teacher_says_as_well_costs_nothing() -> None:
    assert loss(teacher=nn.Identity()) == pytest.approx(CLASSIFICATION + 0.3)


def test_less_forget_grows_with_the_old_classes_by_hand() -> None:
    # In the third task of two classes each, four old classes over two new ones: 5 * sqrt(2).
    vectors = [*VECTORS, [1.0, 1.0], [1.0, -1.0]]
    with_it, without = (loss(vectors=vectors, task=2, teacher=t) for t in (Swap(), nn.Identity()))
    assert with_it - without == pytest.approx(5 * sqrt(2))


def test_without_exemplars_nothing_is_ranked() -> None:
    # The third image alone.
    value = loss(IMAGES[2:], LABELS[2:], teacher=nn.Identity())
    assert value == pytest.approx(log(THIRD) - 1.6)


def test_ranking_pulls_exemplars_from_new_classes() -> None:
    """A margin that is a no-op has no slope."""
    cosines = torch.tensor([[0.5, 0.0, 0.4, -0.9], [0.0, 0.1, 0.2, 0.3], [0.0, 0.9, 0.1, 0.1]], requires_grad=True)
    value = margin_ranking(cosines, torch.tensor([0, 2, 1]), 2, margin=0.5, hard_negatives=2)
    value.backward()
    # Two exemplars, two new classes each: only 0.5 - 0.5 + 0.4 > 0 is not yet far enough; each counts a quarter.
    assert value.item() == pytest.approx(0.4 / 4)
    assert cosines.grad.tolist() == [[-0.25, 0, 0.25, 0], [0, 0, 0, 0], [0, 0, 0, 0]]


def test_less_forget_by_hand() -> None:
    # Angles of 0, 90 and 180 degrees: 0, 1 and 2.
    now, then = torch.tensor([[2.0, 0], [3, 0], [1, 1]]), torch.tensor([[5.0, 0], [0, 1], [-4, -4]])
    assert cosine_distance(now, then).item() == pytest.approx(1)


def test_the_old_vectors_stand_still_while_new_ones_learn() -> None:
    made = bench("lucir")
    model = plain_model(cosine_head(VECTORS, scale=2.0), nn.Identity())
    teacher = plain_model(cosine_head(VECTORS[:2], scale=2.0), nn.Identity())
    stage = made.stage("train", 1)
    stage.loss(model, IMAGES, LABELS, LossContext(1, "images", teacher)).backward()
    slope = model.head(CLASSES).weight.grad
    assert slope is not None
    assert not slope[:2].any()
    assert slope[2:].any(dim=1).all()
