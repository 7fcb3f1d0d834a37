"""Describe for the audit log what leaves this site with an answer: bytes, norms and numbers."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dynammo_core.plan import Action, Step
from dynammo_core.wire.protocol import Instruction, Phase, Report, tensor_bytes


def answer_entries(
    instruction: Instruction,
    step: Step,
    report: Report,
    class_names: tuple[str, ...],
    wire: Mapping[str, Tensor],
    phase: Phase | None = None,
    exemplars_held: Sequence[int] | None = None,
    *,
    again: bool = False,
) -> list[dict[str, Any]]:
    """Describe an answer, and after `remember` the content of the memory, as entries of the audit log.

    Args:
        instruction: what was asked; the log keeps a hash of its experiment.
        step: the step it names.
        report: the checked answer.
        class_names: the experiment's classes, in the order of `class_counts`.
        wire: its tensors as they travel, whose bytes are recorded; norms are those of the report.
        phase: the exchange of secure aggregation that it answers, if any.
        exemplars_held: exemplars per class after `remember`, if the report does not hold them.
        again: whether the answer was recorded when it was first asked for.
    """
    run, counts = {"run": instruction.run}, report.numbers.get("class_counts")
    entries: list[dict[str, Any]] = []
    kept = counts if exemplars_held is None else exemplars_held
    if step.stage.action is Action.REMEMBER and isinstance(kept, Sequence):
        exemplars = {name: count for name, count in zip(class_names, kept, strict=True) if count}
        entries.append({"event": "memory", **run, "task": step.task, "exemplars": exemplars})
    place = {"task": step.task, "stage": step.stage.name, "round": step.round, "action": step.stage.action.value}
    if phase is not None:
        place["exchange"] = phase.value
    left = {
        "abstained": report.abstained,
        "bytes": tensor_bytes(wire),
        "norm": norm(report.weights),
        "tensors": _groups(report.weights, wire),
        "numbers": sorted(report.numbers),
        "class_counts": counts,
    }
    if again:
        left["again"] = True
    if "epsilon" in report.numbers:
        left["epsilon"] = report.numbers["epsilon"]
    experiment = hashlib.sha256(instruction.experiment.encode("utf-8", "surrogatepass")).hexdigest()
    hashes = {"experiment": experiment, "code": instruction.code_hash}
    return [*entries, {"event": "answered", **run, **hashes, **place, **left}]


def norm(weights: Mapping[str, Tensor]) -> float:
    """Return the L2 norm of all tensors together, added up in float64."""
    return math.sqrt(sum(float(torch.linalg.vector_norm(t.double())) ** 2 for t in weights.values()))


def _groups(weights: Mapping[str, Tensor], wire: Mapping[str, Tensor]) -> dict[str, dict[str, float]]:
    """Return number, bytes and norm of the tensors by the first two parts of their names, such as heads.task1."""
    groups: dict[str, tuple[dict[str, Tensor], dict[str, Tensor]]] = {}
    for place, tensors in enumerate((weights, wire)):
        for name, tensor in tensors.items():
            group = ".".join(name.partition(":")[0].split(".")[:2])
            groups.setdefault(group, ({}, {}))[place][name] = tensor
    return {
        group: {"count": len(own), "bytes": tensor_bytes(sent), "norm": norm(own)}
        for group, (own, sent) in groups.items()
    }
