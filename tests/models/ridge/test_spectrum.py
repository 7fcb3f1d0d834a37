"""Eigenvalues and projections by either way are those of a full eigendecomposition, whatever the rank."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dynammo_core.models.ridge.gram import unpack
from dynammo_core.models.ridge.head import RidgeHead
from dynammo_core.models.ridge.solution import standardised
from dynammo_core.models.ridge.spectrum import (
    CANDIDATES,
    FullSpectrum,
    Spectrum,
    ThinSpectrum,
    WholeSpectrum,
    least_error,
    spectrum,
)

SIZE = 40


def positive(samples: int, size: int = SIZE) -> Tensor:
    features = torch.randn(samples, size, generator=torch.Generator().manual_seed(samples), dtype=torch.float64)
    return features.T @ features / samples


def smoothed(found: Spectrum, vectors: Tensor) -> Tensor:
    """(A + 1)^-1 of each vector."""
    return found.combine(found.project(vectors) / (found.values + 1))


@pytest.mark.parametrize("kind", [FullSpectrum, ThinSpectrum, WholeSpectrum])
@pytest.mark.parametrize("samples", [100, 41, 30, 3, 1])
def test_a_regularised_inverse_is_that_of_the_matrix(kind: type[Spectrum], samples: int) -> None:
    matrix = positive(samples)
    vectors = torch.randn(3, SIZE, generator=torch.Generator().manual_seed(0), dtype=torch.float64) @ matrix
    expected = torch.linalg.solve(matrix + torch.eye(SIZE), vectors, left=False)
    found = kind(matrix.clone())  # type: ignore[call-arg]
    torch.testing.assert_close(smoothed(found, vectors), expected, atol=1e-11, rtol=0)
    values = torch.linalg.eigvalsh(matrix)
    torch.testing.assert_close(found.values[-samples:], values[-samples:], atol=1e-11, rtol=0)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_matrices_may_be_small_zero_or_indefinite(size: int) -> None:
    vectors = torch.ones(2, size, dtype=torch.float64)
    for matrix in (torch.zeros(size, size), -torch.eye(size) / 2 + 0.1):
        expected = torch.linalg.solve(matrix.double() + torch.eye(size), vectors, left=False)
        torch.testing.assert_close(smoothed(FullSpectrum(matrix.double()), vectors), expected)
    assert torch.equal(smoothed(ThinSpectrum(torch.zeros(size, size).double()), vectors), torch.zeros_like(vectors))


def test_the_thin_factor_is_taken_where_the_rank_is_low_and_neither_without_scipy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert isinstance(spectrum(positive(20), 19), ThinSpectrum)
    assert isinstance(spectrum(positive(100), 99), FullSpectrum)
    monkeypatch.setattr("dynammo_core.models.ridge.spectrum.find_spec", lambda name: None)
    assert isinstance(spectrum(positive(20), 19), WholeSpectrum)


@pytest.mark.parametrize("images", [12, 300])
def test_the_answer_is_that_of_all_eigenvectors(images: int) -> None:
    """To nine digits, in float64, with the same regulariser."""
    generator = torch.Generator().manual_seed(images)
    labels = torch.arange(images) % 3
    features = torch.randn(images, SIZE, generator=generator) * torch.logspace(-2, 2, SIZE) + torch.eye(3, SIZE)[labels]
    head = RidgeHead(SIZE, (0, 1, 2)).double()
    head.add(features, labels)
    regulariser = head.solve()
    correlation, mean, scale = standardised(unpack(head.gram, SIZE + 1))
    means = head.products[:, -1] / images
    cross = (head.products[:, :-1] / images - torch.outer(means, mean)) / scale
    values, vectors = torch.linalg.eigh(correlation)
    variance = (means - means.square()).sum()
    assert regulariser == least_error(values.clamp_min(0), cross @ vectors, variance, images)
    assert float(CANDIDATES[0]) <= regulariser <= float(CANDIDATES[-1])
    # Of the images, not of the matrix: there a library may leave 1e-9 in directions that only the regulariser fills.
    left, singular, right = torch.linalg.svd((features.double() - mean) / scale, full_matrices=False)
    targets = torch.nn.functional.one_hot(labels).double() - means
    expected = targets.T @ left @ torch.diag(singular / (singular.square() + images * regulariser)) @ right / scale
    torch.testing.assert_close(head.weight, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))
