"""What the methods with one growing softmax classifier on a trainable network share."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from dynammo_core.methods.base import CLASSES, LossContext, Method
from dynammo_core.models.heads import LinearHead
from dynammo_core.models.incremental_model import IncrementalModel
from dynammo_core.plan import Action, Stage
from dynammo_core.settings import MethodSettings, Optimisation


class SingleHeadSettings(MethodSettings):
    """One training stage over the whole network."""

    train: Optimisation = Optimisation(rounds=10, epochs=1, learning_rate=0.01)


class SingleHeadMethod(Method):
    """Trains the whole network with the cross-entropy of a classifier that gains a row for each new class."""

    Params = SingleHeadSettings
    params: SingleHeadSettings

    def stages(self, task: int) -> Sequence[Stage]:
        return (Stage("train", Action.FIT, down=("*",), up=("*",), optimisation=self.params.train),)

    def grow(self, model: IncrementalModel, task: int) -> None:
        new = self.stream.classes(task)
        grown = model.head(CLASSES).extended(new) if task else LinearHead(model.feature_dim, new)
        model.heads[CLASSES] = grown

    def loss(self, model: IncrementalModel, inputs: Tensor, labels: Tensor, context: LossContext) -> Tensor:
        head = model.head(CLASSES)
        logits = head(model.extractor.embed(inputs, start=context.stage.inputs))
        return nn.functional.cross_entropy(logits, head.targets(labels))
