"""What the methods with one growing classifier on a trainable network share, with and without exemplars."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from dynammo_core.configuration.settings import MethodSettings, Optimisation
from dynammo_core.data.samples import Samples
from dynammo_core.methods.base import CLASSES, Batch, LossContext, Method, Rehearsal
from dynammo_core.models.heads import Head, LinearHead, NearestMeanHead
from dynammo_core.models.incremental_model import IncrementalModel
from dynammo_core.plan import Action, Stage

MEANS = "means"
"""Name of the head, and of the stage, of class means."""
TRAINED = ("extractor.*", f"heads.{CLASSES}.*")
"""The whole network and its classifier."""


class SingleHeadSettings(MethodSettings):
    """One training stage over the whole network."""

    train: Optimisation = Optimisation(rounds=10, epochs=1, learning_rate=0.01)


class SingleHeadMethod(Method):
    """Trains the whole network with the cross-entropy of a classifier that gains a row for each new class.

    Attributes:
        taught: patterns of the tensors that a site needs beside the network to train in any task but the first.
    """

    taught: ClassVar[tuple[str, ...]] = ()

    Params = SingleHeadSettings
    params: SingleHeadSettings

    def stages(self, task: int) -> Sequence[Stage]:
        down = (*TRAINED, *(self.taught if task else ()))
        return (Stage("train", Action.FIT, down=down, up=TRAINED, optimisation=self.params.train),)

    def grow(self, model: IncrementalModel, task: int) -> None:
        new = self.stream.classes(task)
        model.heads[CLASSES] = model.head(CLASSES).extended(new) if task else self.first_head(model.feature_dim, new)

    def first_head(self, feature_dim: int, classes: tuple[int, ...]) -> Head:
        """The classifier of the first task, which later tasks extend."""
        return LinearHead(feature_dim, classes)

    def loss(self, model: IncrementalModel, inputs: Tensor, labels: Tensor, context: LossContext) -> Tensor:
        head = model.head(CLASSES)
        logits = head(model.extractor.embed(inputs, start=context.stage.inputs))
        return nn.functional.cross_entropy(logits, head.targets(labels))


class RehearsalSettings(SingleHeadSettings):
    """Which of the two answers that a rehearsed network can give is taken."""

    prediction: Literal["classifier", "nearest_mean"] = Field(
        default="classifier", description="nearest_mean: the class whose exemplars' mean feature is nearest (iCaRL)"
    )


class RehearsalMethod(SingleHeadMethod):
    """Adds the site's exemplars to each task's images; may answer by the nearest mean of exemplars.

    The means are iCaRL's (arXiv 1611.07725, algorithm 1): of unit features, over all sites' exemplars of a class. A
    site sends its own means and how many exemplars stand behind each; the server's weighted mean is that of the pool.
    """

    Params = RehearsalSettings
    params: RehearsalSettings

    def after_memory(self, task: int) -> Sequence[Stage]:
        if self.params.prediction == "classifier":
            return ()
        means = f"heads.{MEANS}.weight"
        return (Stage(MEANS, Action.SUMMARISE, down=("extractor.*",), up=(means,), inputs="features"),)

    def grow(self, model: IncrementalModel, task: int) -> None:
        super().grow(model, task)
        self.grow_means(model, task)

    def grow_means(self, model: IncrementalModel, task: int) -> None:
        """The head of class means, where the method answers by it."""
        if self.params.prediction == "nearest_mean":
            model.heads[MEANS] = NearestMeanHead(model.feature_dim, self.stream.seen(task))

    def training_set(self, stage: Stage, rehearsal: Rehearsal) -> Samples:
        if stage.name == MEANS:
            return rehearsal.memory
        return Samples.concatenate([rehearsal.new, rehearsal.memory])

    def summarise(self, model: IncrementalModel, batches: Iterable[Batch], stage: Stage) -> dict[str, Tensor]:
        """The mean unit feature of each class; zeros for a class that the site does not hold."""
        head = model.head(MEANS)
        means = mean_unit_features(batches, head)
        return {f"heads.{MEANS}.weight": torch.where(means.isnan(), 0.0, means)}

    @property
    def answering_head(self) -> str:
        return MEANS if self.params.prediction == "nearest_mean" else CLASSES


def mean_unit_features(batches: Iterable[Batch], head: Head) -> Tensor:
    """Mean of the unit features of each row's class, Tensor[R, D]; nan where there are none.

    Args:
        batches: features Tensor[B, D] and global labels Tensor[B].
        head: whose rows name the classes.
    """
    total, count = 0.0 * head.weight[: len(head.rows)], head.weight.new_zeros(len(head.rows), 1)
    for features, labels in batches:
        rows = head.targets(labels)
        total = total.index_add(0, rows, nn.functional.normalize(features, dim=1))
        count = count.index_add(0, rows, torch.ones_like(features[:, :1]))
    return total / count
