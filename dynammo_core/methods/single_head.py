"""What the methods with one growing softmax classifier on a trainable network share."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field
from torch import Tensor, nn

from dynammo_core.methods.base import CLASSES, LossContext, Method
from dynammo_core.models.heads import LinearHead
from dynammo_core.models.incremental_model import IncrementalModel
from dynammo_core.plan import Action, Stage
from dynammo_core.settings import MethodSettings, Optimisation

WEIGHTS = ("*.weight", "*.bias")
"""All that is learnt by gradients: batch-norm statistics have other names."""


class SingleHeadSettings(MethodSettings):
    """One training stage over the whole network."""

    freeze_statistics: bool = Field(
        default=True, description="keep the pretrained batch-norm statistics: small or skewed sites would spoil them"
    )
    train: Optimisation = Optimisation(epochs=5, learning_rate=0.01)


class SingleHeadMethod(Method):
    """Trains the whole network with the cross-entropy of a classifier that gains a row for each new class."""

    Params = SingleHeadSettings
    params: SingleHeadSettings

    def stages(self, task: int) -> Sequence[Stage]:
        up = WEIGHTS if self.params.freeze_statistics else ("*",)
        return (Stage("train", Action.FIT, down=("*",), up=up, optimisation=self.params.train),)

    def grow(self, model: IncrementalModel, task: int) -> None:
        new = self.stream.classes(task)
        grown = model.head(CLASSES).extended(new) if task else LinearHead(model.feature_dim, new)
        model.heads[CLASSES] = grown

    def loss(self, model: IncrementalModel, inputs: Tensor, labels: Tensor, context: LossContext) -> Tensor:
        head = model.head(CLASSES)
        logits = head(model.extractor.embed(inputs, start=context.stage.inputs))
        return nn.functional.cross_entropy(logits, head.targets(labels))
