"""The check of a sum over sites: it finds lies that no sum of honest answers could contain, but not who told them."""

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
    """Refuse a sum that honest answers could not give; a lie that another answer compensates for is not found.

    Args:
        total: the sum.
        stage: the stage whose answers were added up.
        model: a model with the structure of the stage's task, holding what the server sent for it.
        classes: number C of classes.
        seen: the classes learnt so far.
        encoding: the layout of the stage's vectors.
        most: samples that all sites in the sum can speak for together.

    Raises:
        ProtocolError: the counts or tensors are impossible.
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
    """Refuse batch norms whose mean square is below the square of the mean: a site's variance was negative."""
    for name, numerator in sums.items():
        if not name.endswith(VARIANCE):
            continue
        mean, square = sums[name.removesuffix(VARIANCE) + MEAN] / samples, numerator / samples
        # The error is the rounding of both numerators, and that of float32 in the sites' own tensors.
        near = rounding / samples * (1 + 2 * mean.abs()) + torch.finfo(torch.float32).eps * square.abs()
        if (square - mean.square() < -near).any():
            raise ProtocolError(f"tensor {name!r}: the mean of the squares is smaller than the square of the mean")
