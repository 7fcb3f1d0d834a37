"""What methods with adapters share: an adapter set in a frozen backbone, tuned with a head that is thrown away."""

from __future__ import annotations

from torch import Tensor, nn

from dynammo_core.data.task_stream import TaskStream
from dynammo_core.methods.rehearsal import if_it_holds
from dynammo_core.methods.settings.adapters import AdapterSettings, kind_for
from dynammo_core.models.adapters import AdapterSet
from dynammo_core.models.heads import OTHERS, LinearHead
from dynammo_core.models.incremental_model import AdaptedBackbone, IncrementalModel, ParallelBackbones
from dynammo_core.models.names import Level
from dynammo_core.models.transformers.adapters import TransformerAdapters
from dynammo_core.plan import Finish, Fit, LossContext, NotesCounts, nothing
from dynammo_core.support.errors import ConfigError

AUXILIARY = "auxiliary"
"""Name of the head that tells a task's new classes from all others, while its adapters are tuned."""
ADAPTERS = "extractor.*adapters.*"
"""Pattern of the tensors of adapters, be the network alone or beside another."""


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


def new_adapters(extractor: AdaptedBackbone, params: AdapterSettings) -> nn.ModuleList:
    """Make a fresh adapter set that fits an extractor.

    Raises:
        ConfigError: the backbone has no place for adapters of that kind, or other places than the parameters speak of,
            or the rank exceeds its width.
    """
    backbone = extractor.backbone
    kind = kind_for(backbone.blocks) if params.adapter == "auto" else params.adapter
    if kind != "convolution":
        if backbone.blocks:
            _require_places(params, len(backbone.blocks))
            return TransformerAdapters(backbone.blocks, kind, params.adapter_rank)
        raise ConfigError(
            f"method.adapter: {kind} goes into blocks whose attention and MLP are linear layers, and this "
            "network has none",
            accepted="a transformer, such as timm/vit_tiny_patch16_224"
            + ("" if backbone.obstacle else "; or method.adapter: convolution with this network"),
        )
    if backbone.obstacle:
        raise ConfigError(
            f"backbone.name: {backbone.obstacle}, so adapters of convolutions have no place in it",
            accepted="a network that is a chain of stages on maps, such as efficientnet_lite0 or timm/convnext_atto"
            + ("; or method.adapter: lora with this network" if backbone.blocks else ""),
            remedy="Or set method.name: streaming_ridge, which needs its features alone",
        )
    _require_places(params, len(backbone.channels))
    return AdapterSet(backbone.channels, params.alpha, params.padding, norm=params.norm, form=params.adapter_form)


def _require_places(params: AdapterSettings, places: int) -> None:
    if misfit := params.misfit_of_places(places):
        raise ConfigError(f"method.{misfit}")


def tuned(model: IncrementalModel) -> AdaptedBackbone:
    """Find the extractor whose adapters the stage `adapt` tunes: the newest of several side by side."""
    extractor = model.extractor.newest if isinstance(model.extractor, ParallelBackbones) else model.extractor
    assert isinstance(extractor, AdaptedBackbone)
    return extractor


def adapters_of(extractor: AdaptedBackbone) -> nn.ModuleList:
    """Find the adapters of an extractor that has been given some."""
    assert extractor.adapters is not None
    return extractor.adapters
