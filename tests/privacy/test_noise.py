"""Sources of randomness: their distributions, what repeats and what must not, and Poisson batches."""

from __future__ import annotations

import math

import pytest
import torch

from dynammo_core.privacy.noise import Noise, SeededNoise, SystemNoise, poisson_batches, steps_of_epoch

COUNT = 20_000
SOURCES = {"seeded": SeededNoise("test"), "system": SystemNoise()}


@pytest.mark.parametrize("kind", SOURCES)
def test_numbers_are_normal_and_uniform(kind: str) -> None:
    """Six standard errors: of a mean s / sqrt(N), of a deviation s / sqrt(2 N), of a share sqrt(p (1 - p) / N)."""
    source: Noise = SOURCES[kind]
    normal, uniform = source.normal(COUNT), source.uniform(COUNT)
    assert normal.dtype == uniform.dtype == torch.float64
    assert abs(float(normal.mean())) < 6 / math.sqrt(COUNT)
    assert abs(float(normal.std()) - 1) < 6 / math.sqrt(2 * COUNT)
    within = float((normal.abs() < 1).double().mean())
    assert abs(within - math.erf(1 / math.sqrt(2))) < 6 * math.sqrt(0.68 * 0.32 / COUNT)
    assert bool(((uniform >= 0) & (uniform < 1)).all())
    assert abs(float(uniform.mean()) - 0.5) < 6 / math.sqrt(12 * COUNT)


def test_seeded_noise_repeats_and_system_noise_does_not() -> None:
    assert torch.equal(SeededNoise("a", 1).normal(5), SeededNoise("a", 1).normal(5))
    assert not torch.equal(SeededNoise("a", 1).normal(5), SeededNoise("a", 2).normal(5))
    torch.manual_seed(0)
    first = SystemNoise().normal(5)
    torch.manual_seed(0)
    assert not torch.equal(first, SystemNoise().normal(5))


def test_poisson_batches_take_each_sample_by_itself() -> None:
    """5 epochs of 10 steps over 2000 samples at rate 0.1: N = 100,000 draws; sizes vary as a binomial's, 13.4."""
    source = SeededNoise("poisson")
    batches = [batch for _ in range(5) for batch in poisson_batches(torch.arange(2000), 0.1, source)]
    assert len(batches) == 50
    sizes = torch.tensor([float(len(batch)) for batch in batches])
    assert abs(float(sizes.mean()) - 200) < 6 * 13.4 / math.sqrt(50)
    assert 8 < float(sizes.std()) < 20
    assert all(len(batch.unique()) == len(batch) for batch in batches)


@pytest.mark.parametrize(("rate", "steps"), [(1.0, 1), (0.25, 4), (0.3, 3), (0.9, 1), (0.01, 100)])
def test_an_epoch_sees_each_sample_once_on_average(rate: float, steps: int) -> None:
    assert steps_of_epoch(rate) == steps == len(poisson_batches(torch.arange(3), rate, SeededNoise("epoch")))


def test_no_samples_make_empty_batches() -> None:
    assert [len(batch) for batch in poisson_batches(torch.arange(0), 0.5, SeededNoise("none"))] == [0, 0]


def test_a_patient_enters_a_batch_with_all_images_or_none() -> None:
    """400 patients with 1 to 4 images each, at rate 0.25: N = 40 * 400 draws, of which a share of 0.25 +- 0.021."""
    owner = torch.arange(400).repeat_interleave(torch.arange(400) % 4 + 1)
    batches = [each for _ in range(10) for each in poisson_batches(owner, 0.25, SeededNoise("patients"))]
    patients = 0
    for index in batches:
        images = torch.bincount(owner[index], minlength=400)
        assert bool(((images == 0) | (images == torch.arange(400) % 4 + 1)).all())
        patients += int((images > 0).sum())
    assert abs(patients / (len(batches) * 400) - 0.25) < 6 * math.sqrt(0.25 * 0.75 / (len(batches) * 400))
