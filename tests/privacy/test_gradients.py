"""DP-SGD's gradients: what clipping bounds, what noise adds, and what they are without either."""

from __future__ import annotations

import math
from copy import deepcopy
from typing import get_args

import pytest
import torch
from opacus import GradSampleModule
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn

from dynammo_core.models.adapters import Adapter
from dynammo_core.models.names import Form
from dynammo_core.privacy import gradients as gradients_module
from dynammo_core.privacy.gradients import PrivateGradients
from dynammo_core.privacy.noise import SeededNoise
from dynammo_core.privacy.units import shares

COUNT = 21
ONCE = torch.ones(COUNT)


def network(form: Form = "full") -> nn.Module:
    """With what opacus knows no rule for: a transposed convolution and a bare scale, in an adapter of group norm."""
    torch.manual_seed(0)
    return nn.Sequential(Adapter(8, 0.5, norm="group", form=form), nn.Flatten(), nn.Linear(8 * 4 * 4, 3)).eval()


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(COUNT, 8, 4, 4, generator=generator), torch.randint(0, 3, (COUNT,), generator=generator)


def private(model: nn.Module, *, clip: float = 1e9, noise: float = 0.0, expected: float = COUNT) -> PrivateGradients:
    def loss(inputs: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.cross_entropy(model(inputs), labels)

    source = SeededNoise("gradients")
    return PrivateGradients(model, loss, clip=clip, noise_multiplier=noise, expected=expected, noise=source)


def gradients(model: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def length(tensors: list[Tensor]) -> float:
    return math.sqrt(sum(float(t.double().square().sum()) for t in tensors))


@pytest.mark.parametrize("form", get_args(Form))
def test_without_noise_and_with_a_wide_bound_it_is_the_usual_gradient(form: Form) -> None:
    model, (inputs, labels) = network(form), batch()
    nn.functional.cross_entropy(model(inputs), labels).backward()
    usual = gradients(model)
    private(model)(inputs, labels, ONCE)
    for one, other in zip(gradients(model), usual, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("held", [gradients_module.HELD, 10_000], ids=["at once", "in parts"])
@pytest.mark.parametrize("clip", [0.05, 0.7])
def test_it_is_the_sum_of_shortened_gradients_one_by_one(
    clip: float, held: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The obvious slow way: a backward pass for each sample. Of 1,568 numbers each, 10,000 are six samples."""
    monkeypatch.setattr(gradients_module, "HELD", held)
    model, (inputs, labels) = network(), batch()
    expected = [torch.zeros_like(p) for p in model.parameters()]
    for one, label in zip(inputs, labels, strict=True):
        model.zero_grad()
        nn.functional.cross_entropy(model(one[None]), label[None]).backward()
        own = gradients(model)
        for total, part in zip(expected, own, strict=True):
            total += part * min(1.0, clip / length(own)) / 7
    private(model, clip=clip, expected=7)(inputs, labels, ONCE)
    for one, other in zip(gradients(model), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_it_is_what_opacus_computes() -> None:
    """For a network that opacus has rules for."""
    inputs, labels = batch()
    torch.manual_seed(0)
    ours = nn.Sequential(nn.Conv2d(8, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3))
    theirs = GradSampleModule(deepcopy(ours), loss_reduction="mean")
    optimizer = DPOptimizer(
        torch.optim.SGD(theirs.parameters(), lr=0.0),
        noise_multiplier=0.0,
        max_grad_norm=0.5,
        expected_batch_size=COUNT,
    )
    nn.functional.cross_entropy(theirs(inputs), labels).backward()
    optimizer.step()
    found = gradients(theirs)
    private(ours, clip=0.5)(inputs, labels, ONCE)
    for one, other in zip(gradients(ours), found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)


def test_a_sample_with_a_huge_gradient_changes_the_sum_by_the_bound_at_most() -> None:
    model, (inputs, labels) = network(), batch()
    sums = private(model, clip=0.5).clipped_sum(inputs, labels, ONCE)
    huge = torch.cat([inputs, 1e6 * torch.ones(1, 8, 4, 4)])
    for label in range(3):
        more = private(model, clip=0.5).clipped_sum(
            huge, torch.cat([labels, torch.tensor([label])]), torch.ones(COUNT + 1)
        )
        assert length([more[name] - sums[name] for name in sums]) <= 0.5 * (1 + 1e-4)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_gradient_that_is_no_number_counts_as_none(value: float) -> None:
    model, (inputs, labels) = network(), batch()
    sums = private(model, clip=0.5).clipped_sum(inputs, labels, ONCE)
    broken = torch.cat([inputs, torch.full((1, 8, 4, 4), value)])
    found = private(model, clip=0.5).clipped_sum(broken, torch.cat([labels, torch.tensor([0])]), torch.ones(COUNT + 1))
    for name, total in sums.items():
        torch.testing.assert_close(found[name], total)


@pytest.mark.parametrize("held", [gradients_module.HELD, 10_000], ids=["at once", "in parts"])
def test_a_patient_more_changes_the_sum_by_the_bound_at_most(held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many images show the patient, and though all of them pull the same way: each alone reaches the bound."""
    monkeypatch.setattr(gradients_module, "HELD", held)
    model, (inputs, labels) = network(), batch()
    image, wanted = torch.ones(1, 8, 4, 4), torch.tensor([1])
    own = private(model, clip=0.05).clipped_sum(image, wanted, torch.ones(1))
    assert length(list(own.values())) == pytest.approx(0.05, rel=1e-4)
    sums = private(model, clip=0.05).clipped_sum(inputs, labels, ONCE)
    for images in (1, 2, 7):
        owner = torch.cat([torch.arange(COUNT), torch.full((images,), COUNT)])
        everything = torch.cat([inputs, image.expand(images, -1, -1, -1)]), torch.cat([labels, wanted.expand(images)])
        more = private(model, clip=0.05).clipped_sum(*everything, shares(owner))
        change = [more[name] - sums[name] for name in sums]
        assert length(change) == pytest.approx(0.05, rel=1e-3)  # that of one image, neither more nor less


def test_a_patients_gradient_is_the_mean_of_its_images() -> None:
    """Each by itself: the obvious slow way, patient by patient."""
    model, (inputs, labels) = network(), batch()
    owner = torch.arange(COUNT) // 4  # five patients with four images, one with one
    expected = [torch.zeros_like(p) for p in model.parameters()]
    for patient in range(6):
        own = [place for place in range(COUNT) if owner[place] == patient]
        for place in own:
            one = private(model, clip=0.3).clipped_sum(inputs[[place]], labels[[place]], torch.ones(1))
            for total, part in zip(expected, one.values(), strict=True):
                total += part / len(own)
    found = private(model, clip=0.3).clipped_sum(inputs, labels, shares(owner))
    for one_, other in zip(found.values(), expected, strict=True):
        torch.testing.assert_close(one_, other, rtol=1e-4, atol=1e-6)


def test_noise_is_as_large_as_it_says() -> None:
    """(sum + noise) / expected: here multiplier 3 times bound 0.5 over 10 is 0.15, by which the empty batch deviates.

    Of N numbers the sample deviation differs from the true one by 1 / sqrt(2 N): N is 1163 and more, so 8 % is far.
    """
    model = network()
    private(model, clip=0.5, noise=3.0, expected=10)(torch.empty(0), torch.empty(0, dtype=torch.int64), torch.empty(0))
    numbers = torch.cat([g.flatten() for g in gradients(model)])
    assert len(numbers) > 1000
    assert float(numbers.std()) == pytest.approx(0.15, rel=0.08)
    assert abs(float(numbers.mean())) < 0.15 * 4 / math.sqrt(len(numbers))


def test_frozen_tensors_stay_without_gradients() -> None:
    model, (inputs, labels) = network(), batch()
    model[0].requires_grad_(False)
    private(model, clip=0.5, noise=1.0)(inputs, labels, ONCE)
    assert [p.grad is None for p in model[0].parameters()] == [True] * 7
    assert len(gradients(model)) == 2
