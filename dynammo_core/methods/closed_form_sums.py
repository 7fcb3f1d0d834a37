"""The sums that a classifier is solved from, so that each class weighs the same: first counts, then weighed sums."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor

from dynammo_core.configuration.privacy import PrivacySettings
from dynammo_core.methods.base import Method
from dynammo_core.methods.closed_form import HEAD, check_prior, ridge_head, solve
from dynammo_core.methods.decisions import CLASSES
from dynammo_core.methods.rehearsal import everything_seen, new_and_exemplars, new_images
from dynammo_core.models.incremental_model import IncrementalModel
from dynammo_core.models.ridge.checks import MOST_NOISED_WEIGHT
from dynammo_core.models.ridge.head import MOST_WEIGHT
from dynammo_core.models.ridge.personal import balancing
from dynammo_core.plan import (
    Archive,
    Batch,
    Computes,
    ComputesPrivately,
    Finish,
    LearnsFrom,
    Summarise,
    SumNoise,
    WeighedBatch,
)


def sums_of(head: str) -> tuple[str, ...]:
    """Return the names of the sums of a head."""
    return tuple(f"heads.{head}.{name}" for name in ("counts", "gram", "products"))


SUMS = sums_of(CLASSES)
COUNTS, (GRAM, PRODUCTS) = SUMS[:1], SUMS[1:]

FinishSums: TypeAlias = Callable[[Method[Any], IncrementalModel, Archive, int], None]
"""What a method does with the sums of a task, at the server."""

WEIGHTS = "weights_of_classes"
"""Name, in the archive, of what each sample of a class weighs in the totals, Tensor[R]; 0 for one that has no image."""


def balanced_sums(
    method: Method[Any], needed: tuple[str, ...] = (), finish: FinishSums = solve
) -> tuple[Summarise, Summarise]:
    """List the stages that sum over exemplars and new images so that each class weighs the same.

    Sites first count, then sum with weights that the server makes of the counts. The result is that of pooling all
    sites' exemplars and new images, whatever the split.

    Args:
        method: whose stages they are.
        needed: patterns of the tensors that a site must be sent before it can compute features.
        finish: solves the classifier.
    """
    return _counted_sums(method, needed, new_and_exemplars, balance_classes, finish)


def streamed_sums(method: Method[Any], needed: tuple[str, ...] = ()) -> tuple[Summarise, Summarise]:
    """List the stages that sum over every image once, at its site, in the task with which its class reaches the site.

    Sites first count, as for `balanced_sums`. The server keeps the totals, so that withdrawn records can be subtracted
    again.

    Args:
        method: whose stages they are.
        needed: patterns of the tensors that a site must be sent before it can compute features.
    """
    correct = partial(add_to_totals, method, corrects=True)
    return _counted_sums(method, needed, new_images, weigh_new_classes, add_to_totals, correct, keeps_sums=True)


def resummed(method: Method[Any], needed: tuple[str, ...] = ()) -> tuple[Summarise, Summarise]:
    """List the stages that sum in each task over every image of all tasks, as if none ever had to be given up.

    The result is that of `streamed_sums`, whose arguments these are, had the network been as it is now from the start.
    """
    return _counted_sums(method, needed, everything_seen, weigh_new_classes, solve)


def _counted_sums(
    method: Method[Any],
    needed: tuple[str, ...],
    learns_from: LearnsFrom,
    weigh: FinishSums,
    finish: FinishSums,
    correct: Finish | None = None,
    *,
    keeps_sums: bool = False,
) -> tuple[Summarise, Summarise]:
    """List two stages: in one sites count their images of each class, in the other they sum with weights made of it.

    Raises:
        ConfigError: the prior names the share of some classes, and not of one that takes part.
    """
    check_prior(method.params.prior, method.stream)
    count = Summarise(
        "count",
        down=needed,
        up=COUNTS,
        inputs="features",
        learns_from=learns_from,
        fewest_samples=1,
        computes=counts(),
        computes_privately=paid_counts,
        counts_alone=True,
        finish=partial(weigh, method),
    )
    add = Summarise(
        "sum",
        down=(*needed, f"{HEAD}.sample_weight"),
        up=SUMS,
        inputs="features",
        learns_from=learns_from,
        fewest_samples=1,
        check_received=partial(check_weights, method.privacy),
        computes=sums(),
        computes_privately=noised_sums(method.privacy.feature_norm),
        finish=partial(finish, method),
        keeps_sums=keeps_sums,
        correct=correct,
    )
    return count, add


def counts() -> Computes:
    """Make a function that returns the number of a site's images of each class."""

    def compute(model: IncrementalModel, batches: Iterable[Batch]) -> dict[str, Tensor]:
        head = ridge_head(model)
        for _, labels in batches:
            rows = head.targets(labels)
            head.counts.index_add_(0, rows, torch.ones_like(rows, dtype=torch.float64))
        return {name: model.state_dict()[name] for name in COUNTS}

    return compute


def sums(head: str = CLASSES) -> Computes:
    """Make a function that returns the sums of a site's images, the Gram matrix as a thin factor if that is shorter."""

    def compute(model: IncrementalModel, batches: Iterable[Batch]) -> dict[str, Tensor]:
        factor = ridge_head(model, head).add_thinly(batches)
        state = model.state_dict()
        found = {name: state[name] for name in sums_of(head)}
        return found if factor is None else {**found, f"heads.{head}.gram": factor}

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


def balance_classes(method: Method[Any], model: IncrementalModel, archive: Archive, task: int) -> None:
    """Weigh each sample of a class by n / (C n_c), so that all classes weigh the same in the sums to come.

    Under privacy the weights are divided by the largest, which changes no answer: noise is made for weights of at most
    1.
    """
    head = ridge_head(model)
    present = head.counts > 0
    balanced = head.counts.sum() / (present.sum() * head.counts.clamp_min(1))
    if method.privacy.mechanism != "none" and present.any():
        balanced = balanced / balanced[present].max()
    head.sample_weight.copy_(torch.where(present, balanced, 1.0))


def weigh_new_classes(method: Method[Any], model: IncrementalModel, archive: Archive, task: int) -> None:
    """Weigh each sample of a class by the power of 2 nearest to 1 / n_c, n_c its images when it is first counted.

    So each class weighs about the same in the scatter within classes; its share of the means is exact, and set when the
    sums are solved (`ridge_solution`). A power of 2 tells sites no more than the size of n_c, rounds nothing, and stays
    when a few records are withdrawn. It never changes, since the sums hold it already, even if a class reaches more
    sites later. Under privacy sites get the weights over the largest, since noise is made for weights of at most 1, and
    `add_to_totals` makes up for it.
    """
    head = ridge_head(model)
    present = head.counts > 0
    weights = torch.zeros_like(head.counts)
    if WEIGHTS in archive:
        weights[: len(archive[WEIGHTS])] = archive[WEIGHTS]
    weights = torch.where(present & (weights == 0), balancing(head.counts), weights)
    archive[WEIGHTS] = weights
    if method.privacy.mechanism != "none" and present.any():
        weights = torch.where(present, weights / weights[present].max(), 0)
    head.sample_weight.copy_(torch.where(weights > 0, weights, 1.0))


def use_weights(model: IncrementalModel, archive: Archive) -> None:
    """Give the model's classes the weights that the archive holds; those without any weigh 1."""
    head = ridge_head(model)
    weights = archive[WEIGHTS][: len(head.rows)]
    head.sample_weight.copy_(torch.where(weights > 0, weights, 1.0))


def check_weights(privacy: PrivacySettings, model: IncrementalModel) -> None:
    """Refuse, at a site, weights of samples out of their range, which noise is made for."""
    ridge_head(model).check_weights(MOST_WEIGHT if privacy.mechanism == "none" else MOST_NOISED_WEIGHT)


def add_to_totals(
    method: Method[Any], model: IncrementalModel, archive: Archive, task: int, *, corrects: bool = False
) -> None:
    """Add the totals of all images so far to the sums that the sites brought, keep them, and solve.

    Args:
        method: of the run.
        model: holds the new sums; or, if it `corrects`, the negative sums of withdrawn records.
        archive: holds the totals, of the classes seen before.
        task: of the plan.
        corrects: whether records leave the totals, which may leave a class without any.
    """
    state, head = model.state_dict(), ridge_head(model)
    weights = archive[WEIGHTS]
    summed = len(archive[COUNTS[0]]) if corrects else len(weights)  # classes; others may be counted already
    brought = head.counts > 0
    if method.privacy.mechanism != "none" and brought.any():
        largest = (weights / head.sample_weight)[brought].max()
        head.gram *= largest
        head.products *= largest
    for name in SUMS:
        if name in archive:
            earlier = archive[name]
            state[name][tuple(slice(size) for size in earlier.shape)] += earlier
    if corrects:
        head.clear_absent()
    held = torch.where(head.counts[:summed] > 0, weights[:summed], 0.0)
    archive[WEIGHTS] = torch.cat([held, weights[summed:]])
    use_weights(model, archive)
    archive.update({name: state[name].clone() for name in SUMS})
    solve(method, model, archive, task)
