"""From a model and labelled images to features and confusion counts, in batches and without gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from dynammo_core.data.samples import Samples
from dynammo_core.data.transforms import to_input
from dynammo_core.methods.base import Method
from dynammo_core.models.incremental_model import IncrementalModel, Level

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
def confusion_counts(method: Method, model: IncrementalModel, features: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Tensor[C, C] int64: images by true class (row) and predicted class (column)."""
    if not len(labels):
        return torch.zeros(classes, classes, dtype=torch.int64)
    predicted = torch.cat([method.predict(model, batch).labels.cpu() for batch in torch.split(features, BATCH)])
    return torch.bincount(labels * classes + predicted, minlength=classes * classes).reshape(classes, classes)
