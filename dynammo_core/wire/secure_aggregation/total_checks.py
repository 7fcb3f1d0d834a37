"""What a sum over sites tells of lies in it: what no sum of honest answers could be, whoever brought it."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from dynammo_core.aggregation.batch_norm import MEAN, VARIANCE
from dynammo_core.models.incremental_model import IncrementalModel
from dynammo_core.plan import Stage
from dynammo_core.support.errors import ProtocolError
from dynammo_core.wire.report_contents import check_counts, check_tensors, check_tests
from dynammo_core.wire.secure_aggregation.encoding import SCALE, Encoding, Total


def check_total(
    total: Total,
    stage: Stage,
    model: IncrementalModel,
    classes: int,
    seen: Collection[int],
    *,
    encoding: Encoding,
    most: int,
) -> None:
    """Refuse a sum that is none of honest answers; one lie in it that another answer makes up for is not found.

    Args:
        total: the sum.
        stage: whose answers were added up.
        model: with the structure of the stage's task, and what the server sent for it.
        classes: number C of classes.
        seen: the classes learnt so far.
        encoding: of the stage's vectors.
        most: samples that all sites in the sum can speak for together.

    Raises:
        ProtocolError: the counts or tensors cannot be.
    """
    check_counts(total.counts, classes, seen, most)
    if "confusion" in total.counts:
        check_tests(total.counts, classes, most)
    if not total.samples:
        return
    rounding = encoding.sites / SCALE
    _check_squares(total.sums, total.samples, rounding)
    merged = encoding.mean(total, model.state_dict())
    check_tensors(merged, stage, model, total.class_counts, rounding=rounding)


def _check_squares(sums: Mapping[str, Tensor], samples: int, rounding: float) -> None:
    """Refuse batch norms whose mean square is below the square of the mean: some site's variance was below 0."""
    for name, numerator in sums.items():
        if not name.endswith(VARIANCE):
            continue
        mean, square = sums[name.removesuffix(VARIANCE) + MEAN] / samples, numerator / samples
        # Off by the rounding of both numerators, and by that of float32 in the sites' own tensors.
        near = rounding / samples * (1 + 2 * mean.abs()) + torch.finfo(torch.float32).eps * square.abs()
        if (square - mean.square() < -near).any():
            raise ProtocolError(f"tensor {name!r}: the mean of squares is below the square of the mean")
