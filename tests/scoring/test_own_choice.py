"""Whether a site's own classifier is better, and where it answers: patients count once, and no class is given up."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dynammo_core.scoring.own_choice import gained, gains, own_answers

CLASSES = 5
answers = st.lists(st.integers(0, CLASSES - 1), min_size=30, max_size=30).map(torch.tensor)


def test_gains_are_of_classes_alike_and_their_error_pools_all_classes() -> None:
    # Class 0 gains 1 and 3, class 1 gains 6: means 2 and 6, of both 4. Residuals -1, 1, 0 about two means: variance 2.
    gain, error = gains(torch.tensor([[1.0, 3.0, 6.0]]), torch.tensor([0, 0, 1]), ["a", "b", "c"])
    assert gain.tolist() == [4.0]
    assert error.tolist() == pytest.approx([(2 * (1 / 2 + 1)) ** 0.5 / 2])


@pytest.mark.parametrize("each", [1, 2, 3, 10])
def test_few_patients_are_chosen_by_chance_no_more_often_than_many(each: int) -> None:
    """A normal variable exceeds its deviation in 16 of 100 cases, and an estimated one a little more often."""
    noise = torch.randn(3000, 4 * each, generator=torch.Generator().manual_seed(each), dtype=torch.float64)
    gain, error = gains(noise, torch.arange(4 * each) % 4, [str(place) for place in range(4 * each)])
    assert float((gain > error).double().mean()) < 0.21
    if each == 1:
        assert bool(error.isinf().all())


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


def scores(each: int, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    """Outputs for images of the first two of three classes, mostly right, their labels and patients."""
    labels = torch.arange(2).repeat_interleave(each)
    outputs = torch.randn(2 * each, 3, generator=torch.Generator().manual_seed(seed)).double()
    outputs[torch.arange(2 * each), labels] += 1
    return outputs, labels, [str(place) for place in range(2 * each)]


def by_two(common: torch.Tensor, own: torch.Tensor, labels: torch.Tensor, patients: list[str]) -> torch.Tensor:
    outputs = torch.stack([common, own])
    return gained(outputs, outputs.argmax(dim=2), torch.arange(3), labels, patients)[1]


def test_neither_to_be_surer_nor_to_know_fewer_classes_is_a_gain() -> None:
    common, labels, patients = scores(40)
    assert by_two(common, 4 * common, labels, patients).abs().max() < 1e-12
    ignorant = common.clone()
    ignorant[:, 2] = -100  # it never saw the third class, of which the site has no images
    assert bool((by_two(common, ignorant, labels, patients) == 0).all())
    better = common.clone()
    better[torch.arange(80), labels] += 1
    assert float(by_two(common, better, labels, patients).mean()) > 0.1


def test_one_image_at_which_a_classifier_is_far_off_counts_as_one() -> None:
    common, labels, patients = scores(40)
    far = common.clone()
    far[0, :2] = torch.tensor([-1e6, 1e6])
    gain = by_two(far, common, labels, patients)
    assert 0 < float(gain[0]) <= 2
    assert gain[1:].abs().max() < 1e-12
