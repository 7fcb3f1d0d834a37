"""What the methods with adapters share: a frozen backbone, and adapters tuned with an auxiliary head."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from dynammo_core.configuration.settings import MethodSettings, Optimisation
from dynammo_core.data.samples import Samples
from dynammo_core.methods.base import LossContext, Method, Rehearsal
from dynammo_core.models.adapters import AdapterSet
from dynammo_core.models.heads import OTHERS, LinearHead
from dynammo_core.models.incremental_model import AdaptedBackbone, IncrementalModel, ParallelBackbones
from dynammo_core.plan import Action, Stage

AUXILIARY = "auxiliary"
ADAPTERS = "extractor.*adapters.*"
"""Pattern of the tensors of adapters, be the network alone or beside another."""


class AdapterSettings(MethodSettings):
    """Adapters, and the stage that tunes them."""

    alpha: float = Field(default=0.02, gt=0, description="weight of an adapter at the start; learnt from there on")
    padding: Literal[0, 1] = Field(
        default=1, description="of the adapters' convolutions; 0: the paper, needs maps of 3x3 pixels at every stage"
    )
    norm: Literal["batch", "group"] = Field(
        default="batch", description="of the adapters; group: has no statistics over images, as privacy needs"
    )
    adapt: Optimisation = Optimisation(epochs=10, learning_rate=0.02)


class AdapterMethod(Method):
    """The stage `adapt`: the adapters of a task learn, by a head that is thrown away, its classes from all others.

    Source: stage 1 of DynaMMo (arXiv 2404.14099, section 3) and ACL (arXiv 2304.09042, section 2).
    """

    params: AdapterSettings
    freezes_backbone = True

    def adapt_stage(self) -> Stage:
        """The stage that tunes the adapters and the auxiliary head."""
        tuned = (ADAPTERS, f"heads.{AUXILIARY}.*")
        return Stage("adapt", Action.FIT, tuned, tuned, self.params.adapt, inputs="prefix")

    def grow_auxiliary(self, model: IncrementalModel, task: int, width: int) -> None:
        """A new auxiliary head of the task's classes and "others", on features of `width`."""
        model.heads[AUXILIARY] = LinearHead(width, (*self.stream.classes(task), OTHERS))

    def tuned(self, model: IncrementalModel) -> AdaptedBackbone:
        """The extractor whose adapters the stage `adapt` tunes: the newest of several side by side."""
        extractor = model.extractor.newest if isinstance(model.extractor, ParallelBackbones) else model.extractor
        assert isinstance(extractor, AdaptedBackbone)
        return extractor

    def new_adapters(self, extractor: AdaptedBackbone) -> AdapterSet:
        """A fresh adapter set that fits an extractor."""
        params = self.params
        return AdapterSet(extractor.backbone.channels, params.alpha, params.padding, norm=params.norm)

    def adapting_set(self, rehearsal: Rehearsal) -> Samples:
        """The site's new images and exemplars; empty for a site that holds none of the task's own classes."""
        own = rehearsal.has_new(self.stream.classes(rehearsal.task))
        return Samples.concatenate([rehearsal.new, rehearsal.memory]) if own else Samples.empty()

    def loss(self, model: IncrementalModel, inputs: Tensor, labels: Tensor, context: LossContext) -> Tensor:
        """Cross-entropy of the auxiliary head on the last features, with exemplars as "others"."""
        logits = self.auxiliary_logits(model, inputs, context.stage)
        return nn.functional.cross_entropy(logits, model.head(AUXILIARY).targets(labels))

    def auxiliary_logits(self, model: IncrementalModel, inputs: Tensor, stage: Stage) -> Tensor:
        """What the auxiliary head says of inputs Tensor[B, ...] at the stage's level: Tensor[B, R]."""
        logits: Tensor = model.head(AUXILIARY)(self.tuned(model).embed_last(inputs, start=stage.inputs))
        return logits
