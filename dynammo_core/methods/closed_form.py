"""What methods share whose classifier is solved in closed form: sums over samples, one solve at the server."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial

import torch
from pydantic import Field
from torch import Tensor

from dynammo_core.configuration.privacy import PrivacySettings
from dynammo_core.configuration.settings import MethodSettings
from dynammo_core.data.task_stream import TaskStream
from dynammo_core.methods.decisions import CLASSES, DecisionRule, Prediction
from dynammo_core.methods.governance import Governance
from dynammo_core.methods.rehearsal import new_and_exemplars, new_images
from dynammo_core.models.backbones import Backbone
from dynammo_core.models.incremental_model import AdaptedBackbone, IncrementalModel, MultiScaleBackbone, Pooling
from dynammo_core.models.ridge import MOST_WEIGHT, RidgeHead
from dynammo_core.models.ridge_checks import MOST_NOISED_WEIGHT
from dynammo_core.plan import Archive, Batch, Computes, ComputesPrivately, Stage, Summarise, SumNoise, WeighedBatch

HEAD = f"heads.{CLASSES}"
COUNTS = (f"{HEAD}.counts",)
GRAM = f"{HEAD}.gram"
SUMS = (*COUNTS, GRAM, f"{HEAD}.products")
ANSWERS = (f"{HEAD}.weight", f"{HEAD}.bias")
"""Patterns of the tensors that answer; they are solved from the sums."""

SHARPNESS = 8
"""Inverse temperature. Of 4, 8 and 16 the best calibrated over digits and Fashion-MNIST, on validation images, whatever
the number of classes; a power of two leaves every answer as it is, bit for bit."""

STRETCH = 4
"""Power of the odds of the open-set score: it keeps their order, and spreads them over the bins that sites count in."""


class ClosedFormSettings(MethodSettings):
    """The features, and how smooth the solution is."""

    multi_scale: bool = Field(default=True, description="use the pooled inputs of every stage beside the last features")
    pooling: Pooling = Field(
        default="mean",
        description="pooling of the stages' inputs; mean: each channel's mean; spread: its mean and standard "
        "deviation; grid: its mean in each quarter of the map, and its standard deviation",
    )
    regulariser: float | None = Field(
        default=None,
        gt=0,
        description="regulariser of the ridge regression; null: chosen by generalised cross-validation on the sums",
    )


def by_example_alone(params: ClosedFormSettings, mechanism: str) -> str:
    """Explain why sums cannot be private by client; empty for `example`."""
    return (
        ""
        if mechanism == "example"
        else "its sums over samples have no mean over sites; set privacy.mechanism: example"
    )


SUMS_GOVERNANCE = Governance(obstacle_to_privacy=by_example_alone)
"""Describes a method that sends nothing but sums over samples on frozen features."""


def scales(params: ClosedFormSettings, backbone: Backbone) -> AdaptedBackbone:
    """Make the extractor that the settings name, on a backbone, without adapters."""
    return MultiScaleBackbone(backbone, params.pooling) if params.multi_scale else AdaptedBackbone(backbone)


def grow_scales(params: ClosedFormSettings, model: IncrementalModel, task: int) -> None:
    """Give the model, with its first task, the features that the settings name."""
    if params.multi_scale and task == 0:
        assert isinstance(model.extractor, AdaptedBackbone)
        model.extractor = scales(params, model.extractor.backbone)


def grow_ridge(model: IncrementalModel, stream: TaskStream, task: int) -> None:
    """Give the model a classifier of all classes seen so far, whose sums start from nothing."""
    model.heads[CLASSES] = RidgeHead(model.feature_dim, stream.seen(task))


def ridge_head(model: IncrementalModel) -> RidgeHead:
    """Find the classifier and its sums."""
    head = model.head(CLASSES)
    assert isinstance(head, RidgeHead)
    return head


class LargestLabel(DecisionRule):
    """Answers with the largest regressed label; its probabilities are the softmax of these labels, sharpened.

    Regressed labels differ by 1 at most, and their plain softmax would be nearly even. How known the image is follows
    from s, the largest label over 1 plus what lies below 0: s^4 / (s^4 + (1 - s)^4). Labels sum to 1, and an image like
    nothing learnt gets some below 0, so that others have to be larger: s is then the largest label's share of the
    positive ones. After noise they sum to anything, and s still serves.
    """

    open_set_score = "s^4 / (s^4 + (1 - s)^4), s the largest regressed label over 1 plus what lies below 0"

    def probabilities(self, model: IncrementalModel, features: Tensor) -> list[Tensor]:
        return [(SHARPNESS * ridge_head(model)(features)).softmax(dim=1)]

    def predict(self, model: IncrementalModel, features: Tensor) -> Prediction:
        labels = ridge_head(model)(features)
        below = labels.clamp_max(0).sum(dim=1)
        share = (labels.max(dim=1).values / (1 - below)).clamp(0, 1)
        known = share**STRETCH / (share**STRETCH + (1 - share) ** STRETCH)
        return replace(super().predict(model, features), known=known)


def balanced_sums(
    params: ClosedFormSettings, privacy: PrivacySettings, needed: tuple[str, ...] = ()
) -> tuple[Stage, ...]:
    """List the stages that sum over exemplars and new images so that each class weighs the same.

    Sites first count, then sum with weights that the server makes of the counts. The result is that of pooling all
    sites' exemplars and new images, whatever the split.

    Args:
        params: of the method.
        privacy: of the experiment.
        needed: patterns of the tensors that a site must be sent before it can compute features.
    """
    count = Summarise(
        "count",
        down=needed,
        up=COUNTS,
        inputs="features",
        learns_from=new_and_exemplars,
        computes=counts(),
        computes_privately=paid_counts,
        counts_alone=True,
        finish=partial(balance_classes, privacy),
    )
    add = Summarise(
        "sum",
        down=(*needed, f"{HEAD}.sample_weight"),
        up=SUMS,
        inputs="features",
        learns_from=new_and_exemplars,
        check_received=partial(check_weights, privacy),
        computes=sums(),
        computes_privately=noised_sums(privacy.feature_norm),
        finish=partial(solve, params, privacy),
    )
    return count, add


def streamed_sums(params: ClosedFormSettings, privacy: PrivacySettings, needed: tuple[str, ...] = ()) -> Stage:
    """Make the stage that sums over every image once, at its site, in the task with which its class reaches the site.

    The server keeps the totals, so that withdrawn records can be subtracted again. The arguments are those of
    `balanced_sums`.
    """
    return Summarise(
        "sum",
        down=needed,
        up=SUMS,
        inputs="features",
        learns_from=new_images,
        computes=sums(),
        computes_privately=noised_sums(privacy.feature_norm),
        finish=partial(add_to_totals, params, privacy),
        correct=partial(add_to_totals, params, privacy, corrects=True),
    )


def counts() -> Computes:
    """Make a function that returns the number of a site's images of each class."""

    def compute(model: IncrementalModel, batches: Iterable[Batch]) -> dict[str, Tensor]:
        head = ridge_head(model)
        for _, labels in batches:
            rows = head.targets(labels)
            head.counts.index_add_(0, rows, torch.ones_like(rows, dtype=torch.float64))
        return {name: model.state_dict()[name] for name in COUNTS}

    return compute


def sums() -> Computes:
    """Make a function that returns the sums of a site's images, the Gram matrix as a thin factor if that is shorter."""

    def compute(model: IncrementalModel, batches: Iterable[Batch]) -> dict[str, Tensor]:
        factor = ridge_head(model).add_thinly(batches)
        state = model.state_dict()
        found = {name: state[name] for name in SUMS}
        return found if factor is None else {**found, GRAM: factor}

    return compute


def noised_sums(bound: float) -> ComputesPrivately:
    """Make the private twin of `sums`: features no longer than `bound`, and noise on the sums."""

    def compute(
        model: IncrementalModel, batches: Iterable[WeighedBatch], counts: Mapping[int, int], noise: SumNoise
    ) -> dict[str, Tensor]:
        head = ridge_head(model)
        head.add_all((_shortened(features, bound), labels, weights) for features, labels, weights in batches)
        head.blur(counts, bound, noise)
        state = model.state_dict()
        return {name: state[name] for name in SUMS}

    return compute


def _shortened(features: Tensor, bound: float) -> Tensor:
    """Return features Tensor[B, D] no longer than a bound, float64."""
    # One image whose features overflow would tell of itself by making the whole sum NaN.
    finite = features.double().masked_fill(~features.isfinite().all(dim=1, keepdim=True), 0.0)
    shortened: Tensor = finite * (bound / finite.norm(dim=1, keepdim=True)).clamp_max(1)
    return shortened


def paid_counts(
    model: IncrementalModel, batches: Iterable[WeighedBatch], counts: Mapping[int, int], noise: SumNoise
) -> dict[str, Tensor]:
    """Return the private twin of `counts`: numbers that are noised already, and no image's."""
    head = ridge_head(model)
    head.counts.copy_(torch.tensor([counts.get(row, 0) for row in head.rows]))
    return {name: model.state_dict()[name] for name in COUNTS}


def balance_classes(privacy: PrivacySettings, model: IncrementalModel, archive: Archive, task: int) -> None:
    """Weigh each sample of a class by n / (C n_c), so that all classes weigh the same in the sums to come.

    Under privacy the weights are divided by the largest, which changes no answer: noise is made for weights of at most
    1.
    """
    head = ridge_head(model)
    present = head.counts > 0
    balanced = head.counts.sum() / (present.sum() * head.counts.clamp_min(1))
    if privacy.mechanism != "none" and present.any():
        balanced = balanced / balanced[present].max()
    head.sample_weight.copy_(torch.where(present, balanced, 1.0))


def check_weights(privacy: PrivacySettings, model: IncrementalModel) -> None:
    """Refuse, at a site, weights of samples out of their range, which noise is made for."""
    ridge_head(model).check_weights(MOST_WEIGHT if privacy.mechanism == "none" else MOST_NOISED_WEIGHT)


def add_to_totals(
    params: ClosedFormSettings,
    privacy: PrivacySettings,
    model: IncrementalModel,
    archive: Archive,
    task: int,
    *,
    corrects: bool = False,
) -> None:
    """Add the totals of all images so far to the sums that the sites brought, keep them, and solve.

    Args:
        params: of the method.
        privacy: of the experiment.
        model: holds the new sums; or, if it `corrects`, the negative sums of withdrawn records.
        archive: holds the totals, of the classes seen before.
        task: of the plan.
        corrects: whether records leave the totals, which may leave a class without any.
    """
    state = model.state_dict()
    for name in SUMS:
        if name in archive:
            earlier = archive[name]
            state[name][tuple(slice(size) for size in earlier.shape)] += earlier
    if corrects:
        ridge_head(model).clear_absent()
    archive.update({name: state[name].clone() for name in SUMS})
    solve(params, privacy, model, archive, task)


def solve(
    params: ClosedFormSettings, privacy: PrivacySettings, model: IncrementalModel, archive: Archive, task: int
) -> None:
    """Solve the classifier from the sums, noised or not."""
    head = ridge_head(model)
    (head.solve if privacy.mechanism == "none" else head.solve_noised)(params.regulariser)
