"""Images that would explain what an attacker saw, found by descent, and how like the true ones they are."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence

import torch
from matplotlib import rc_context
from matplotlib.figure import Figure
from torch import Tensor, nn
from torchmetrics.functional.image import peak_signal_noise_ratio, total_variation

from dynammo_core.configuration.optimisation import Optimisation
from dynammo_core.data.samples import Samples
from dynammo_core.training import fit
from server.report.plots import STYLE
from simulations.attacks.findings import Tell

SMOOTHNESS = 1.0
"""On an update of two digits 1 came nearer to the truth than 0.1 (13.9 against 13.2 dB); more keeps to the start."""
RATE = 0.02
"""Of the descent, at its start."""
MOST_DECIBELS = 100.0
"""Of equal images, where the ratio is infinite."""


def reconstruct(
    distance: Callable[[Tensor], Tensor], start: Tensor, *, iterations: int, smoothness: float = SMOOTHNESS
) -> Tensor:
    """Search for smooth images in [0, 1], Tensor[B, C, S, S], that are near to what was seen.

    As Geiping et al. (arXiv 2003.14053, section 4): Adam on the distance plus total variation, pixels held in their
    range, the rate divided by ten after 3/8, 5/8 and 7/8 of the way. Deviations: the gradients themselves instead of
    their signs, which came nearer here, and a start of the caller's choice instead of noise.

    Args:
        distance: scalar, of images.
        start: where the search begins.
        iterations: steps.
        smoothness: weight of the total variation of a pixel.
    """
    images = nn.Parameter(start.clone())
    cuts = tuple(round(iterations * eighths / 8) for eighths in (3, 5, 7))
    descent = Optimisation(
        epochs=iterations, optimizer="adam", learning_rate=RATE, weight_decay=0, schedule="step", milestones=cuts
    )

    def batches(_: int) -> Iterator[tuple[Tensor, Tensor]]:
        images.data.clamp_(0, 1)
        yield images, torch.empty(len(images))

    def objective(inputs: Tensor, _: Tensor) -> Tensor:
        roughness: Tensor = total_variation(inputs) / inputs.numel()
        return distance(inputs) + smoothness * roughness

    fit([images], objective, batches, descent, round_=0)
    return images.detach().clamp(0, 1)


def counted(distance: Callable[[Tensor], Tensor], what: str, total: int, tell: Tell) -> Callable[[Tensor], Tensor]:
    """Return a distance that tells how often it was asked for."""
    done = 0

    def counting(images: Tensor) -> Tensor:
        nonlocal done
        done += 1
        tell(what, done, total)
        return distance(images)

    return counting


def decibels(image: Tensor, truth: Tensor) -> float:
    """Return the peak signal-to-noise ratio of an image in [0, 1], at most `MOST_DECIBELS`."""
    return min(float(peak_signal_noise_ratio(image, truth, data_range=1.0)), MOST_DECIBELS)


def best_matches(images: Tensor, labels: Tensor, truths: Samples) -> tuple[list[float], Tensor]:
    """Return per image of [B, C, S, S] the highest ratio, in decibels, to a true image of its label, and that image."""
    ratios, nearest = [], []
    for image, label in zip(images, labels.tolist(), strict=True):
        candidates = truths.of_class(label).images[:].float() / 255
        own = [decibels(image, candidate) for candidate in candidates]
        ratios.append(max(own))
        nearest.append(candidates[own.index(max(own))])
    return ratios, torch.stack(nearest)


def gallery(rows: Sequence[tuple[str, Tensor]]) -> bytes:
    """Draw rows of images [B, C, S, S] in [0, 1] under each other, each with its name, as PNG."""
    columns = max(len(images) for _, images in rows)
    with rc_context(STYLE):
        figure = Figure(figsize=(1.9 + 1.1 * columns, 1.2 * len(rows)))
        grid = figure.subplots(len(rows), columns, squeeze=False)
        for axes in grid.flat:
            axes.set_axis_off()
        for row, (name, images) in zip(grid, rows, strict=True):
            row[0].text(-0.15, 0.5, name, transform=row[0].transAxes, ha="right", va="center")
            for axes, image in zip(row, images, strict=False):
                axes.imshow(image.expand(3, -1, -1).permute(1, 2, 0).numpy(), vmin=0, vmax=1, interpolation="nearest")
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight", metadata={"Software": None})
    return buffer.getvalue()
