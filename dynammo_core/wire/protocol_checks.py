"""The check of every message against the protocol, at both ends: anything that is not declared is an error."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import replace

from torch import Tensor

from dynammo_core.models.incremental_model import IncrementalModel
from dynammo_core.plan import Stage
from dynammo_core.support.errors import ProtocolError, unknown_name
from dynammo_core.wire.compression import packed_form, unpack
from dynammo_core.wire.compression.base import Codec
from dynammo_core.wire.protocol import MOST, NEVER_NEGATIVE, Numbers, Report, lengths_of, numbers_of
from dynammo_core.wire.report_contents import check_counts, check_tensors, check_tests
from dynammo_core.wire.sparse_counts import with_dense_table
from dynammo_core.wire.sums_form import THIN, WHOLE, SumsForm, whole


def check_packed(report: Report, stage: Stage, declared: Mapping[str, Tensor], codec: Codec) -> None:
    """Refuse a report whose packed tensors differ in name, type or shape from what the codec makes of those declared.

    Raises:
        ProtocolError: a tensor is undeclared, missing, or of another type or shape.
    """
    form = packed_form(codec, declared)
    same_names("tensor", set(report.weights), set(form))
    for name, tensor in report.weights.items():
        dtype, shape = form[name]
        if (tensor.dtype, tuple(tensor.shape)) != (dtype, shape):
            raise ProtocolError(
                f"tensor {name!r} is {tensor.dtype} {tuple(tensor.shape)} on the wire, in the stage {stage.name!r}",
                accepted=f"{dtype} {shape}",
            )


def opened_report(
    report: Report,
    stage: Stage,
    model: IncrementalModel,
    classes: int,
    seen: Collection[int] | None = None,
    *,
    codec: Codec,
    sent: Mapping[str, Tensor],
    most: int = MOST,
    private: bool = False,
    secure: bool = False,
    sums: SumsForm = THIN,
    declared: Mapping[str, Tensor] | None = None,
) -> Report:
    """Unpack a site's report and check it packed and unpacked; `sent` is what the site was sent in this step.

    The other arguments are those of `check_report`. In the report that is returned, Gram matrices are whole.

    Raises:
        ProtocolError: `check_packed` or `check_report` refuses the report.
    """
    _check_forms({name: report.numbers[name] for name in report.numbers if name == "class_counts"}, classes)
    form = WHOLE if private or secure else sums
    check_packed(report, stage, _declared(report, stage, model, form, declared), codec)
    report = with_dense_table(replace(report, weights=unpack(codec, report.weights, sent)), classes)
    check_report(
        report, stage, model, classes, seen, most=most, private=private, secure=secure, sums=sums, declared=declared
    )
    return replace(report, weights=whole(report.weights, model))


def check_report(
    report: Report,
    stage: Stage,
    model: IncrementalModel,
    classes: int,
    seen: Collection[int] | None = None,
    *,
    most: int = MOST,
    private: bool = False,
    secure: bool = False,
    own: bool = False,
    sums: SumsForm = THIN,
    declared: Mapping[str, Tensor] | None = None,
) -> None:
    """Refuse a report that does not hold exactly what the stage declares, or that no images could give; at both ends.

    Args:
        report: the answer.
        stage: the stage it answers.
        model: a model with the structure of the stage's task, holding what was sent for it.
        classes: number C of classes of the experiment.
        seen: the classes learnt so far, all C by default: an answer may speak of no other class.
        most: samples that the site can speak for.
        private: whether training images are protected one by one, see `PRIVATE_NUMBERS`.
        secure: whether the report is one that leaves openly under secure aggregation, without any count of images.
        own: whether the caller is the site that made the tensors; then the slow factorisation of sums is left out.
        sums: how Gram matrices travel, unless they are noised or masked.
        declared: the model's tensors that the stage sends up, if the caller has many reports to compare with them.

    Raises:
        ProtocolError: a tensor or number is undeclared, missing, of another shape or type, not finite, or impossible
            for so many samples.
    """
    _check_forms({name: report.numbers[name] for name in report.numbers if name == "class_counts"}, classes)
    declared = _declared(report, stage, model, WHOLE if private or secure else sums, declared)
    same_names("tensor", set(report.weights), set(declared))
    for name, tensor in report.weights.items():
        if tensor.shape != declared[name].shape or tensor.dtype != declared[name].dtype:
            raise ProtocolError(
                f"tensor {name!r} is {tensor.dtype} {tuple(tensor.shape)} in the stage {stage.name!r}",
                accepted=f"{declared[name].dtype} {tuple(declared[name].shape)}",
            )
        if not tensor.is_floating_point():
            raise ProtocolError(f"tensor {name!r} contains values that are not finite floating-point numbers")
    if report.abstained and not report.numbers:
        return
    if secure:
        numbers = frozenset({"seconds"})
    elif private and report.abstained:
        numbers = frozenset({"epsilon"})
    else:
        numbers = numbers_of(stage, private)
    same_names("number", set(report.numbers), set(numbers))
    _check_forms(report.numbers, classes)
    if "class_counts" in numbers:
        check_counts(report.numbers, classes, range(classes) if seen is None else seen, most)
    if "confusion" in numbers:
        check_tests(report.numbers, classes, most)
    if report.weights:
        if not any(report.class_counts):
            raise ProtocolError(
                "an answer without samples contains tensors", accepted="an answer that abstains, without tensors"
            )
        check_tensors(report.weights, stage, model, report.class_counts, noised=private, own=own)


def _declared(
    report: Report, stage: Stage, model: IncrementalModel, sums: SumsForm, kept: Mapping[str, Tensor] | None
) -> Mapping[str, Tensor]:
    """Return tensors such as the report must hold, by name; its counts have the right form, if it has any."""
    if report.abstained:
        return {}
    return sums.declared(model, stage, report.class_counts if "class_counts" in report.numbers else None, kept)


def _check_forms(numbers: Numbers, classes: int) -> None:
    """Refuse each number that is neither a list of counts of the right length nor one finite number, as declared."""
    lengths = lengths_of(classes)
    for name, value in numbers.items():
        if name in lengths:
            fits = isinstance(value, list) and len(value) == lengths[name]
            if not fits or not all(type(count) is int and 0 <= count <= MOST for count in value):  # type: ignore[union-attr]
                raise ProtocolError(f"number {name!r} is not a list of {lengths[name]} counts")
        elif isinstance(value, list):
            raise ProtocolError(f"number {name!r} is a list", accepted="one number")
        elif not math.isfinite(value) or (value < 0 and name in NEVER_NEGATIVE):
            raise ProtocolError(f"number {name!r} is {value}", accepted="a finite number, 0 or more if it is an amount")


def same_names(kind: str, got: set[str], declared: set[str]) -> None:
    """Refuse names that are not exactly the declared ones.

    Raises:
        ProtocolError: a name is undeclared or missing.
    """
    for name in sorted(got - declared):
        raise ProtocolError(unknown_name(kind, name, declared), accepted=", ".join(sorted(declared)[:8]) or "none")
    for name in sorted(declared - got):
        raise ProtocolError(f"the {kind} {name!r} is missing")
