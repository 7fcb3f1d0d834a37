from __future__ import annotations

from math import e, log

import pytest
from method_bench import Bench, bench, toy_images
from plain_networks import says

ALPHA, BETA = 0.4, 0.3


def taught() -> Bench:
    """The teacher's logits are 1 and 2 for the classes 0 and 1; the pupil's ln 1, ln 2, ln 4, ln 1 for all four."""
    made = bench("dark_er", alpha=ALPHA, beta=BETA)
    made.begin(0)
    says(made.head, [e, e**2])
    made.begin(1)
    says(made.head, [1, 2, 4, 1])
    return made


# New images: of eight parts, class 2 has four and class 3 one, so labels 2 and 3 cost ln 2 and ln 8: a mean of 2 ln 2.
# Exemplars: labels 0 and 1 cost ln 8 and ln 4: a mean of 5/2 ln 2; the logits ln 1 and ln 2 are 1 and 2 - ln 2 away
# from the old ones, whatever the image: a mean square of (1 + (2 - ln 2)^2) / 2.
NEW = 2 * log(2)
OLD = ALPHA * (1 + (2 - log(2)) ** 2) / 2 + BETA * 5 / 2 * log(2)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [((0, 1, 2, 3), NEW + OLD), ((2, 3), NEW), ((0, 1), OLD)],
    ids=["both", "new images alone", "exemplars alone"],
)
def test_the_loss_by_hand(labels: tuple[int, ...], expected: float) -> None:
    made = taught()
    loss = made.loss(made.stage("train", 1), 1, toy_images(labels, each=1))
    assert loss.item() == pytest.approx(expected)


def test_a_term_is_a_mean_over_its_own_images() -> None:
    """Exemplars are few in a batch: their terms must not fade with their number."""
    made = taught()
    stage = made.stage("train", 1)
    few = made.loss(stage, 1, toy_images((0, 1), each=1)).item()
    crowded = toy_images((0, 1, 2, 3), each=5).subset([0, 5, *range(10, 20)])
    assert made.loss(stage, 1, crowded).item() == pytest.approx(few + NEW)


def test_the_first_task_is_plain_cross_entropy_by_hand() -> None:
    made = bench("dark_er")
    made.begin(0)
    says(made.head, [1 / 4, 3 / 4])
    loss = made.loss(made.stage("train", 0), 0, toy_images((0, 1), each=1))
    assert loss.item() == pytest.approx((log(4) + log(4 / 3)) / 2)
