"""Whether a site's own classifier is better, and where it answers: patients count once, and no class is given up."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dynammo_core.scoring.own_choice import gains, own_answers

CLASSES = 5
answers = st.lists(st.integers(0, CLASSES - 1), min_size=30, max_size=30).map(torch.tensor)


def test_gains_are_of_classes_alike_and_their_error_pools_all_classes() -> None:
    # Class 0 gains 1 and 3, class 1 gains 6: means 2 and 6, of both 4. Residuals -1, 1, 0: variance 2 / 3.
    gain, error = gains(torch.tensor([[1.0, 3.0, 6.0]]), torch.tensor([0, 0, 1]), ["a", "b", "c"])
    assert gain.tolist() == [4.0]
    assert error.tolist() == pytest.approx([(2 / 3 * (1 / 2 + 1)) ** 0.5 / 2])


@given(copies=st.integers(1, 6))
def test_a_patient_with_many_images_counts_as_one_with_one(copies: int) -> None:
    better, labels = torch.tensor([[0.5, -1.0, 2.0, 1.0]]), torch.tensor([0, 0, 1, 1])
    usual = gains(better, labels, ["a", "b", "c", "a"])
    many = gains(
        torch.cat([better, better[:, 1:2].expand(1, copies)], dim=1),
        torch.cat([labels, labels[1:2].expand(copies)]),
        ["a", "b", "c", "a", *["b"] * copies],
    )
    torch.testing.assert_close(many, usual)


@given(common=answers, own=answers, truth=answers, held=st.sets(st.integers(0, CLASSES - 1)))
def test_what_a_site_has_no_images_of_is_recognised_exactly_as_by_the_common_classifier(
    common: torch.Tensor, own: torch.Tensor, truth: torch.Tensor, held: set[int]
) -> None:
    answered = torch.where(own_answers(common, own, torch.tensor(sorted(held), dtype=torch.int64)), own, common)
    for label in set(range(CLASSES)) - held:
        assert torch.equal(answered == label, common == label)
    if len(held) == CLASSES:
        assert torch.equal(answered, own)
