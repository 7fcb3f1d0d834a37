"""From a model and labelled images to features, answers and their counts, in batches and without gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from dynammo_core.data.samples import Samples
from dynammo_core.data.transforms import to_input
from dynammo_core.methods.base import Method, Prediction
from dynammo_core.models.incremental_model import IncrementalModel, Level
from dynammo_core.scoring.reliability import Reliability

BATCH = 128


@torch.no_grad()
def embed_samples(
    model: IncrementalModel, samples: Samples, normalisation: str, device: torch.device, end: Level = "features"
) -> Tensor:
    """The samples carried to a level of the network, batch by batch: Tensor[N, ...] on `device`."""
    model.eval()
    parts = [
        model.extractor.embed(to_input(images, normalisation, device), start="images", end=end)
        for images in torch.split(samples.images, BATCH)
    ]
    return torch.cat(parts)


@torch.no_grad()
def predictions(method: Method, model: IncrementalModel, features: Tensor) -> Prediction:
    """What the method answers to features Tensor[N, D], batch by batch, on the CPU."""
    if not len(features):
        return Prediction(torch.empty(0, dtype=torch.int64), torch.empty(0), torch.empty(0))
    parts = [method.predict(model, batch) for batch in torch.split(features, BATCH)]
    labels, probability, known = (
        torch.cat([getattr(part, name).cpu() for part in parts]) for name in ("labels", "probability", "known")
    )
    return Prediction(labels, probability, known)


def answer_counts(learnt: Prediction, labels: Tensor, others: Prediction, classes: int) -> dict[str, list[int]]:
    """The tables of a test: `confusion`, and those of `Reliability`.

    Args:
        learnt: answers to images of learnt classes.
        labels: their true classes, Tensor[N].
        others: answers to images of classes to come.
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
    """Tensor[C, C] int64: images by true class (row) and predicted class (column)."""
    return torch.bincount(labels * classes + predicted, minlength=classes * classes).reshape(classes, classes)
