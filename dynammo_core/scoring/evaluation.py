"""Evaluation of a model on labelled images: features, answers and their counts, in batches without gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dynammo_core.data.samples import Samples
from dynammo_core.data.transforms import Normalisation, to_input
from dynammo_core.methods.base import Method
from dynammo_core.methods.decisions import Prediction
from dynammo_core.models.incremental_model import IncrementalModel
from dynammo_core.models.names import Level
from dynammo_core.scoring.reliability import Reliability
from dynammo_core.support.devices import fits, moved

BATCH = 128


@torch.no_grad()
def embed_samples(
    model: IncrementalModel,
    samples: Samples,
    normalisation: str | Normalisation,
    device: torch.device,
    end: Level = "features",
    megabytes: int | None = None,
    batch: int = BATCH,
) -> Tensor:
    """Carry the samples to a level of the network, batch by batch: Tensor[N, ...] on `device` if it has room for them.

    Args:
        model: the network.
        samples: N images.
        normalisation: of its inputs.
        device: that computes.
        end: the level.
        megabytes: bound of the memory on the device, in MB; None is no bound.
        batch: images at a time.
    """
    model.eval()
    whole, done = torch.empty(0), 0
    for images in samples.batches(batch):
        part = model.extractor.embed(to_input(images, normalisation, device), start="images", end=end)
        if not done:
            whole = _room(part, len(samples), device, megabytes)
        whole[done : done + len(part)] = part
        done += len(part)
    return whole


def _room(part: Tensor, count: int, device: torch.device, megabytes: int | None) -> Tensor:
    """Return room for all samples, laid out as a batch of them is, before the next batch takes its place.

    A part that stays behind after each batch would keep the system from using the memory of the batch again.
    """
    last = part.dim() == 4 and part.is_contiguous(memory_format=torch.channels_last)
    return torch.empty(
        count,
        *part.shape[1:],
        dtype=part.dtype,
        device=device if fits(part[0].nbytes * count, device, megabytes) else "cpu",
        memory_format=torch.channels_last if last else torch.contiguous_format,
    )


@torch.no_grad()
def predictions(method: Method[Any], model: IncrementalModel, features: Tensor) -> Prediction:
    """Return the method's answers to features Tensor[N, D], batch by batch, on the CPU."""
    if not len(features):
        return Prediction(torch.empty(0, dtype=torch.int64), torch.empty(0), torch.empty(0))
    device = next(model.parameters()).device
    parts = [method.decision.predict(model, moved(batch, device)) for batch in torch.split(features, BATCH)]
    labels, probability, known = (
        torch.cat([getattr(part, name).cpu() for part in parts]) for name in ("labels", "probability", "known")
    )
    return Prediction(labels, probability, known)


def answer_counts(learnt: Prediction, labels: Tensor, others: Prediction, classes: int) -> dict[str, list[int]]:
    """Count a test's answers into its tables: `confusion`, and those of `Reliability`.

    Args:
        learnt: answers to images of learnt classes.
        labels: their true classes, Tensor[N].
        others: answers to images of classes that are still to come.
        classes: number C of classes.
    """
    reliability = Reliability.counted(
        learnt.probability.double().numpy(),
        (learnt.labels == labels).numpy(),
        learnt.known.double().numpy(),
        others.known.double().numpy(),
    )
    return {
        "confusion": confusion_counts(learnt.labels, labels, classes).flatten().tolist(),
        **reliability.as_numbers(),
    }


def confusion_counts(predicted: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Count images by true class (row) and predicted class (column), Tensor[C, C] int64."""
    return torch.bincount(labels * classes + predicted, minlength=classes * classes).reshape(classes, classes)
