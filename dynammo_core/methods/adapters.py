"""What methods with adapters share: an adapter set in a frozen backbone, tuned with a head that is thrown away."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from dynammo_core.configuration.settings import MethodSettings, Optimisation
from dynammo_core.data.task_stream import TaskStream
from dynammo_core.methods.rehearsal import if_it_holds
from dynammo_core.models.adapters import AdapterSet, Form
from dynammo_core.models.heads import OTHERS, LinearHead
from dynammo_core.models.incremental_model import AdaptedBackbone, IncrementalModel, ParallelBackbones
from dynammo_core.models.names import Level
from dynammo_core.plan import Finish, Fit, LossContext, NotesCounts, nothing
from dynammo_core.support.errors import ConfigError

AUXILIARY = "auxiliary"
"""Name of the head that tells a task's new classes from all others, while its adapters are tuned."""
ADAPTERS = "extractor.*adapters.*"
"""Pattern of the tensors of adapters, be the network alone or beside another."""


class AdapterSettings(MethodSettings):
    """Adapters, and the stage that tunes them."""

    alpha: float = Field(default=0.02, gt=0, description="initial value of an adapter's learnable scale")
    padding: Literal[0, 1] = Field(
        default=1,
        description="padding of the adapters' convolutions; 0: as in the paper, needs feature maps of at least 3x3 "
        "pixels at every stage",
    )
    norm: Literal["batch", "group"] = Field(
        default="batch",
        description="normalisation in the adapters; group keeps no statistics across images, which privacy requires",
    )
    adapter_form: Form = Field(
        default="full",
        description="convolutions of an adapter on maps of c channels: full, as in the paper, with 18 c² weights; "
        "low_rank, by way of c/8 channels, with c²/2; depthwise, a kernel for each channel, with 2 c²",
    )
    adapt: Optimisation = Optimisation(epochs=10, learning_rate=0.02)

    def misfit_of_places(self, places: int) -> str:
        """Explain why these parameters do not go with so many adapters in a set; empty if they do."""
        return ""


def adapt(
    params: AdapterSettings,
    classes: tuple[int, ...],
    *,
    adapters: str = ADAPTERS,
    note_counts: NotesCounts = nothing,
    finish: Finish = nothing,
) -> Fit:
    """Make the stage that tunes a task's adapters and its auxiliary head, which learns `classes` and "others".

    Exemplars are "others". A site without images of the task's own classes abstains. Source: stage 1 of DynaMMo (arXiv
    2404.14099, section 3) and ACL (arXiv 2304.09042, section 2).
    """
    tuned = (adapters, f"heads.{AUXILIARY}.*")
    return Fit(
        "adapt",
        down=tuned,
        up=tuned,
        inputs="prefix",
        optimisation=params.adapt,
        learns_from=if_it_holds(classes),
        loss=auxiliary_cross_entropy,
        note_counts=note_counts,
        finish=finish,
    )


def auxiliary_cross_entropy(model: IncrementalModel, inputs: Tensor, labels: Tensor, context: LossContext) -> Tensor:
    """Compute the cross-entropy of the auxiliary head on the last features, with exemplars as "others"."""
    logits = auxiliary_logits(model, inputs, context.inputs)
    return nn.functional.cross_entropy(logits, model.head(AUXILIARY).targets(labels))


def auxiliary_logits(model: IncrementalModel, inputs: Tensor, start: Level) -> Tensor:
    """Compute the auxiliary head's logits Tensor[B, R] of inputs Tensor[B, ...] that stand at the level `start`."""
    logits: Tensor = model.head(AUXILIARY)(tuned(model).embed_last(inputs, start=start))
    return logits


def grow_auxiliary(model: IncrementalModel, stream: TaskStream, task: int) -> None:
    """Give the model a new auxiliary head of the task's classes and "others"."""
    width = tuned(model).backbone.feature_dim
    model.heads[AUXILIARY] = LinearHead(width, (*stream.classes(task), OTHERS))


def new_adapters(extractor: AdaptedBackbone, params: AdapterSettings) -> AdapterSet:
    """Make a fresh adapter set that fits an extractor.

    Raises:
        ConfigError: the backbone has no place for adapters, or other places than the parameters speak of.
    """
    if extractor.backbone.obstacle:
        raise ConfigError(
            f"backbone.name: {extractor.backbone.obstacle}, so the adapters of this method have no place in it",
            accepted="a network that is a chain of stages on maps, such as efficientnet_lite0 or timm/convnext_atto",
            remedy="Or set method.name: streaming_ridge, which needs its features alone",
        )
    if misfit := params.misfit_of_places(len(extractor.backbone.channels)):
        raise ConfigError(f"method.{misfit}")
    return AdapterSet(
        extractor.backbone.channels, params.alpha, params.padding, norm=params.norm, form=params.adapter_form
    )


def tuned(model: IncrementalModel) -> AdaptedBackbone:
    """Find the extractor whose adapters the stage `adapt` tunes: the newest of several side by side."""
    extractor = model.extractor.newest if isinstance(model.extractor, ParallelBackbones) else model.extractor
    assert isinstance(extractor, AdaptedBackbone)
    return extractor


def adapters_of(extractor: AdaptedBackbone) -> AdapterSet:
    """Find the adapters of an extractor that has been given some."""
    assert extractor.adapters is not None
    return extractor.adapters


def obstacle_of_batch_norm(params: AdapterSettings) -> str:
    """Explain why adapters with batch norm cannot be tuned privately; empty if they have group norm."""
    if params.norm == "group":
        return ""
    return (
        "batch norm mixes the images of a batch, and gradient clipping does not bound the statistics that it sends; "
        "set method.norm: group"
    )
