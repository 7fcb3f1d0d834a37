"""What methods with one growing classifier share: how it grows and learns, and the nearest mean of exemplars."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from dynammo_core.data.task_stream import TaskStream
from dynammo_core.methods.decisions import CLASSES, MEANS
from dynammo_core.methods.rehearsal import exemplars
from dynammo_core.methods.settings.heads import RehearsalSettings, SingleHeadSettings
from dynammo_core.models.batch_statistics import batch_statistics
from dynammo_core.models.heads import Head, LinearHead, NearestMeanHead
from dynammo_core.models.incremental_model import IncrementalModel
from dynammo_core.plan import Batch, Finish, Fit, LearnsFrom, Loss, LossContext, Remember, Stage, Summarise, nothing

HEAD = (f"heads.{CLASSES}.*",)
"""The classifier."""
NETWORK = ("extractor.*", *HEAD)
"""The whole network and its classifier."""
STATISTICS = ".running_*"
"""How the patterns of batch-norm statistics end."""


def grow_classifier(
    model: IncrementalModel,
    stream: TaskStream,
    task: int,
    first: Callable[[int, tuple[int, ...]], Head] = LinearHead,
) -> None:
    """Add a row for each new class to the classifier; the first task makes it by `first(feature_dim, classes)`."""
    new = stream.classes(task)
    model.heads[CLASSES] = model.head(CLASSES).extended(new) if task else first(model.feature_dim, new)


def cross_entropy(model: IncrementalModel, inputs: Tensor, labels: Tensor, context: LossContext) -> Tensor:
    """Compute the cross-entropy of the classifier."""
    head = model.head(CLASSES)
    logits = head(model.extractor.embed(inputs, start=context.inputs))
    return nn.functional.cross_entropy(logits, head.targets(labels))


def train(
    params: SingleHeadSettings,
    learns_from: LearnsFrom,
    loss: Loss = cross_entropy,
    *,
    network: str = "extractor.*",
    heads: tuple[str, ...] = HEAD,
    beside: tuple[str, ...] = (),
    finish: Finish = nothing,
) -> tuple[Stage, ...]:
    """List the stages that train the network and its classifier, with `method.batch_norm` as asked for.

    Args:
        params: of the method.
        learns_from: chooses the images.
        loss: what is minimised.
        network: pattern of the part of the extractor that is trained.
        heads: patterns of the heads that are trained.
        beside: patterns of tensors that sites are sent as well.
        finish: what the server does after the last round.
    """
    fit = Fit(
        "train",
        down=("extractor.*", *heads, *beside),
        up=(network, *heads, *((f"!{network}{STATISTICS}",) if params.batch_norm == "frozen" else ())),
        optimisation=params.train,
        learns_from=learns_from,
        loss=loss,
        finish=finish,
    )
    if params.batch_norm != "reestimated":
        return (fit,)
    statistics = (f"{network}{STATISTICS}",)

    def estimated(model: IncrementalModel, batches: Iterable[Batch]) -> dict[str, Tensor]:
        return batch_statistics(model, statistics, batches, model.extractor)

    return (fit, Summarise("recalibrate", down=NETWORK, up=statistics, learns_from=learns_from, computes=estimated))


def grow_class_means(model: IncrementalModel, stream: TaskStream, task: int, params: RehearsalSettings) -> None:
    """Grow the head of class means, if the method answers by it."""
    if params.prediction == "nearest_mean":
        model.heads[MEANS] = NearestMeanHead(model.feature_dim, stream.seen(task))


def remember(params: RehearsalSettings, deployed: tuple[str, ...]) -> tuple[Stage, ...]:
    """List the stages that end a task with exemplars: each site takes its own, and may send their class means.

    The means are iCaRL's (arXiv 1611.07725, algorithm 1): of unit features, over all sites' exemplars of a class. A
    site sends its own means and how many exemplars stand behind each; the server's weighted mean is that of the pool.
    """
    memory = Remember(down=deployed)
    if params.prediction == "classifier":
        return (memory,)
    means = Summarise(
        MEANS,
        down=("extractor.*",),
        up=(f"heads.{MEANS}.weight",),
        inputs="features",
        learns_from=exemplars,
        computes=class_means,
    )
    return (memory, means)


def class_means(model: IncrementalModel, batches: Iterable[Batch]) -> dict[str, Tensor]:
    """Compute the mean unit feature of each class; zeros for a class that the site does not hold."""
    means = mean_unit_features(batches, model.head(MEANS))
    return {f"heads.{MEANS}.weight": torch.where(means.isnan(), 0.0, means)}


def mean_unit_features(batches: Iterable[Batch], head: Head) -> Tensor:
    """Compute the mean of the unit features of each row's class, Tensor[R, D]; nan for a class without images.

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
