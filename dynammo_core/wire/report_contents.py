"""Checks that a report is possible: counts add up, and some samples could give its variances, squares and sums."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from dynammo_core.aggregation.batch_norm import VARIANCE
from dynammo_core.models.heads import Head
from dynammo_core.models.incremental_model import IncrementalModel
from dynammo_core.plan import ALONE, Action, Stage
from dynammo_core.scoring.reliability import Reliability
from dynammo_core.support.errors import ProtocolError
from dynammo_core.wire.compression.float16 import LARGEST
from dynammo_core.wire.protocol import TABLES, Numbers, extremes


def check_counts(numbers: Numbers, classes: int, seen: Collection[int], most: int) -> None:
    """Refuse counts of samples of classes that are not learnt yet, or of more samples than a site can have.

    Args:
        numbers: the numbers of an answer, each of the right length.
        classes: number C of classes.
        seen: the classes learnt so far.
        most: samples that the answer can speak for.

    Raises:
        ProtocolError: the counts are impossible.
    """
    counts = _list(numbers, "class_counts")
    if any(count for label, count in enumerate(counts) if label not in seen):
        raise ProtocolError("'class_counts' contains samples of classes that are not learnt yet")
    if sum(counts) > most:
        raise ProtocolError(
            f"'class_counts' reports {sum(counts)} samples",
            accepted=f"at most {most}",
            remedy="If the site does have so many, raise limits.most_images",
        )
    tables = [name for name in TABLES if name in numbers]
    if not tables:
        return
    known = {true * classes + predicted for true in seen for predicted in seen}
    for table in tables:
        if any(count for cell, count in enumerate(_list(numbers, table)) if cell not in known):
            raise ProtocolError(f"{table!r} contains images of classes that are not learnt yet")


def check_tests(numbers: Numbers, classes: int, most: int) -> None:
    """Refuse tables of a test that do not count the same images, or count more than a site can have.

    Raises:
        ProtocolError: the tables do not add up.
    """
    counts = _list(numbers, "class_counts")
    rows = np.array(_list(numbers, "confusion"), dtype=np.int64).reshape(classes, classes)
    for name in (name for name in TABLES if name in numbers):
        table = np.array(_list(numbers, name), dtype=np.int64).reshape(classes, classes)
        if table.sum(axis=1).tolist() != counts and (name != ALONE or table.any()):
            raise ProtocolError(f"the rows of {name!r} do not add up to 'class_counts'")
    tables = Reliability.of(numbers)
    if obstacle := tables.obstacle(images=sum(counts), right=int(rows.trace())):
        raise ProtocolError(obstacle)
    if tables.to_come + sum(counts) > most:
        raise ProtocolError(
            f"'open_set' counts {tables.to_come} images of future classes, beside {sum(counts)} of learnt ones",
            accepted=f"at most {most} in total",
        )


def check_tensors(
    weights: Mapping[str, Tensor],
    stage: Stage,
    model: IncrementalModel,
    class_counts: Sequence[int],
    *,
    noised: bool = False,
    own: bool = False,
    rounding: float = 0.0,
) -> None:
    """Refuse tensors that no training and no samples could give; types and shapes are checked already.

    No number may be larger than float16 holds, in which weights may travel: those of networks that have learnt anything
    stay below a hundredth of that, its squares are finite in float32, and sums of its squares in float64.

    Args:
        weights: tensors by name.
        stage: the stage that they answer; those of a correction are negative sums.
        model: a model with the structure of the stage's task, holding what the server sent for it.
        class_counts: [C] samples of each class that the tensors speak for.
        noised: whether noise hides single images, so that sums need no longer be those of any samples.
        own: whether the caller made the tensors: only the server runs the checks that take long.
        rounding: how far each number may lie from what it should be, beside what float64 rounds.

    Raises:
        ProtocolError: one of them is impossible.
    """
    heads, within = heads_by_prefix(model), LARGEST**2 if stage.squares else LARGEST
    summed = {f"{prefix}{name}" for prefix, head in heads.items() for name in head.summed_tensors}
    for name, (low, high) in extremes(weights).items():
        if not -torch.inf < low <= high < torch.inf:
            raise ProtocolError(f"tensor {name!r} contains values that are not finite floating-point numbers")
        if name not in summed and max(-low, high) > within:
            raise ProtocolError(f"tensor {name!r} reaches {max(-low, high):.3g}", accepted=f"at most {within:g}")
        if low < 0 and (stage.squares or name.endswith(VARIANCE)):
            raise ProtocolError(
                f"tensor {name!r} contains {low:.3g}", accepted="0 or more, since it contains variances or squares"
            )
    for prefix, head in heads.items():
        tensors = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
        if stage.action is Action.FORGET:
            tensors = {name: -tensor for name, tensor in tensors.items()}
        if tensors and (obstacle := head.obstacle(tensors, class_counts, noised=noised, own=own, rounding=rounding)):
            raise ProtocolError(f"tensors {prefix}*: {obstacle}")


def heads_by_prefix(model: IncrementalModel) -> dict[str, Head]:
    """Return each head of the model, by the prefix of the names of its tensors."""
    return {f"heads.{name}.": head for name, head in model.heads.items() if isinstance(head, Head)}


def _list(numbers: Numbers, name: str) -> list[int]:
    value = numbers[name]
    assert isinstance(value, list)
    return value
