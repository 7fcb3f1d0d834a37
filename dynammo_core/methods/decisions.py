"""How a model answers: which heads, with what probabilities, and how sure it is that it has learnt the class at all."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dynammo_core.models.heads import Head
from dynammo_core.models.incremental_model import IncrementalModel

CLASSES = "classes"
"""Name of the one head of methods that have a single classifier."""

MEANS = "means"
"""Name of the head of class means; a method that has grown it answers by it."""


@dataclass(frozen=True)
class Prediction:
    """Answers for a batch.

    Attributes:
        labels: Tensor[B] int64, global class indices.
        probability: Tensor[B], of the answer.
        known: Tensor[B] in [0, 1], how sure the model is that it has learnt the image's class at all.
    """

    labels: Tensor
    probability: Tensor
    known: Tensor


class DecisionRule:
    """Answers with the most probable row of one head: the class means if the method has grown them, or the classifier.

    Attributes:
        open_set_score: what `Prediction.known` is, in words for a model card.
    """

    open_set_score = "the probability of the answer (the maximum softmax probability)"

    def heads(self, model: IncrementalModel) -> list[Head]:
        """List the heads that answer, which together have a row for each class."""
        return [model.head(MEANS if MEANS in model.heads else CLASSES)]

    def probabilities(self, model: IncrementalModel, features: Tensor) -> list[Tensor]:
        """Compute, from features Tensor[B, D], the probabilities Tensor[B, R] of each answering head's rows."""
        return [head(features).softmax(dim=1) for head in self.heads(model)]

    def predict(self, model: IncrementalModel, features: Tensor) -> Prediction:
        """Answer for features Tensor[B, D]."""
        (head,), (probabilities,) = self.heads(model), self.probabilities(model, features)
        probability, row = probabilities.max(dim=1)
        return Prediction(torch.tensor(head.rows, device=row.device)[row], probability, known=probability)
