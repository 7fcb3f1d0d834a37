"""`dynammo-sim bench solves`: a closed-form solve beside a full eigendecomposition, and the bytes of its sums."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from dynammo_core.support.terminal import Terminal, readable_errors

if TYPE_CHECKING:
    from torch import Tensor

console = Terminal()
SHARES = (2.0, 0.5, 0.25)
"""Images for each feature."""
CLASSES = 10


@dataclass(frozen=True)
class SolveCost:
    """What one solve costs, processor seconds, beside what it replaces.

    Attributes:
        images: number of images in the sums.
        eigh: seconds of `torch.linalg.eigh` and the same steps with its eigenvectors.
        own: seconds of ours.
        difference: largest difference of the two answers, relative to the largest number in them.
    """

    images: int
    eigh: float
    own: float
    difference: float


def solves(
    features: Annotated[int, typer.Option(min=8, help="Number of features.")] = 4096,
    threads: Annotated[int, typer.Option(min=1, help="Number of threads of each.")] = 1,
    repeats: Annotated[int, typer.Option(min=1, help="Number of measurements of each; the best one counts.")] = 1,
) -> None:
    """Time the solve that chooses its regulariser, with many and few images, against a full eigendecomposition.

    Both take turns on the same matrices; read the ratios. Beside them, what a site with so many images sends.
    """
    with readable_errors():
        table = Table("images", "eigh, s", "own, s", "ratio", "difference", "whole, MB", "sent, MB", "float32, MB")
        for share in SHARES:
            cost = solve_cost(features, int(share * features), threads, repeats)
            table.add_row(
                str(cost.images),
                *(f"{seconds:.2f}" for seconds in (cost.eigh, cost.own)),
                f"{cost.eigh / cost.own:.2f}",
                f"{cost.difference:.0e}",
                *(f"{size / 1e6:.1f}" for size in sent_bytes(features, cost.images)),
            )
        console.print(table)


def solve_cost(features: int, images: int, threads: int, repeats: int) -> SolveCost:
    """Solve for so many images, with and without their eigenvectors, and compare time and answer."""
    import torch
    from threadpoolctl import threadpool_limits

    from dynammo_core.models.ridge.spectrum import CANDIDATES, least_error, spectrum

    torch.set_num_threads(threads)
    correlation, cross = standardised_sums(features, images)

    def solution(values: Tensor, projected: Tensor, combine: Callable[[Tensor], Tensor]) -> Tensor:
        regulariser = least_error(values.clamp_min(0), projected, torch.tensor(1 - 1 / CLASSES), float(images))
        assert regulariser in CANDIDATES.tolist()
        return combine(projected / (values.clamp_min(0) + regulariser))

    def by_vectors() -> Tensor:
        values, vectors = torch.linalg.eigh(correlation)
        return solution(values, cross @ vectors, lambda found: found @ vectors.T)

    def own() -> Tensor:
        found = spectrum(correlation.clone(), images - 1)
        return solution(found.values, found.project(cross), found.combine)

    spectrum(torch.eye(2, dtype=torch.float64), 2)  # imports SciPy, whose threads are limited below
    seconds: tuple[list[float], list[float]] = ([], [])
    answers: list[Tensor] = []
    with threadpool_limits(threads, "blas"):
        for _ in range(repeats):
            for work, taken in zip((by_vectors, own), seconds, strict=True):
                started = time.process_time()
                answers.append(work())
                taken.append(time.process_time() - started)
    wanted, got = answers[-2:]
    difference = float((wanted - got).abs().max() / wanted.abs().max())
    return SolveCost(images, min(seconds[0]), min(seconds[1]), difference)


def standardised_sums(features: int, images: int) -> tuple[Tensor, Tensor]:
    """Return correlations [D, D] and products with labels [C, D] of random images, whose features correlate."""
    import torch

    from dynammo_core.support.seeding import seeded_generator

    random = seeded_generator("bench solves", features, images)
    spread = torch.logspace(0, -2, features, dtype=torch.float64)
    inputs = torch.randn(images, features, generator=random, dtype=torch.float64) * spread
    labels = torch.eye(CLASSES, dtype=torch.float64)[torch.arange(images) % CLASSES]
    mixed = inputs + 0.1 * (labels @ torch.randn(CLASSES, features, generator=random, dtype=torch.float64)) * spread
    mixed = mixed - mixed.mean(dim=0)
    mixed /= mixed.square().mean(dim=0).sqrt()
    return mixed.T @ mixed / images, (labels - labels.mean(dim=0)).T @ mixed / images


def sent_bytes(features: int, images: int) -> tuple[int, int, int]:
    """Return the bytes of a site's Gram matrix as a triangle, as it travels, and with a factor in float32."""
    from math import prod

    from dynammo_core.models.ridge.gram import travelling_shape

    counts = [len(range(label, images, CLASSES)) for label in range(CLASSES)]
    shape = travelling_shape(counts, features)
    sent = 8 * prod(shape)
    return 4 * (features + 1) * (features + 2), sent, sent // 2 if len(shape) == 2 else sent
