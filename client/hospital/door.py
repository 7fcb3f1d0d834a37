"""Check every answer at the one place through which it leaves the site, the last before Flower.

It does not trust the code that made an answer. Records, keys and their order, types, shapes and every byte must be
those that the protocol declares for the step, else the answer stays here. It cannot detect what a modified program
hides within valid weights and counts: against that, a person approves the hash of the code.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import lru_cache, partial
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from client.consent.fewest import Fewest
from client.steps.site import Site
from dynammo_core.configuration.limits import most_samples
from dynammo_core.experiment import Experiment
from dynammo_core.plan import Action, Stage, Step, Summarise
from dynammo_core.scoring.reliability import UNIT, Reliability
from dynammo_core.support.errors import DynammoError, ProtocolError
from dynammo_core.wire.announcement import Announcement
from dynammo_core.wire.arrays import header
from dynammo_core.wire.compression import CODECS, packed_form
from dynammo_core.wire.envelope import decode_statistics
from dynammo_core.wire.protocol import TABLES, Phase, lengths_of, numbers_of
from dynammo_core.wire.report_contents import check_tests
from dynammo_core.wire.secure_aggregation.encoding import Encoding
from dynammo_core.wire.secure_aggregation.phases import PHASE_UP, phase_shape
from dynammo_core.wire.sparse_counts import dense
from dynammo_core.wire.statistics import Statistics

UNEXPECTED = 199
"""The code of an unexpected error."""

SECONDS = frozenset({"seconds"})

Form = tuple[str, tuple[int, ...]]
"""Type and shape of a tensor, in numpy's words."""


@dataclass(frozen=True)
class Declared:
    """All that may leave in the answer to one step.

    Attributes:
        action: says which numbers.
        tensors: the form of each tensor by its name, in their order.
        classes: number C of classes.
        most: no more samples than the site can have.
        fewest: each class's count is 0, or at least this.
        by_counts: the tensors' forms for so many samples of each class, where they depend on these.
        numbers: names of the numbers.
        abstaining: the numbers of an abstaining site, which may also send all numbers, or none.
        hidden: secure aggregation hides whether the site abstains, and every count.
    """

    action: Action
    tensors: Mapping[str, Form]
    classes: int
    most: int
    fewest: int = 1
    by_counts: Callable[[tuple[int, ...]], Mapping[str, Form]] | None = None
    numbers: frozenset[str] = frozenset()
    abstaining: frozenset[str] = frozenset()
    hidden: bool = False


def declared(site: Site, step: Step, phase: Phase | None = None, peers: int = 0) -> Declared:
    """Return what the protocol declares for a step at a site, or for an exchange of secure aggregation with `peers`."""
    secure = site.experiment.config.federation.secure_aggregation
    if phase is not None:
        dtype, shape = phase_shape(phase, peers, _vector_length(site.experiment, step.task, step.stage))
        form = {PHASE_UP[phase]: (str(dtype).removeprefix("torch."), shape)}
        numbers = SECONDS if phase is Phase.MASKED else frozenset()
        return Declared(step.stage.action, form, 0, 0, numbers=numbers, hidden=True)
    experiment, tests = site.experiment, step.stage.action is Action.EVALUATE
    data = experiment.dataset
    images = len((data.test if tests else data.train).labels)
    most = most_samples(images, step.stage.action, experiment.config, experiment.classes)
    fewest = (site.fewest if tests or step.stage.action is Action.FORGET else site.fewest_exemplars).images
    forms, action, by_counts = _forms(experiment, step.task, step.stage), step.stage.action, None
    if isinstance(step.stage, Summarise) and experiment.sums_form.thin:
        by_counts = partial(_forms, experiment, step.task, step.stage)
    if secure:
        return Declared(action, forms, experiment.classes, most, fewest, numbers=SECONDS, hidden=True)
    if experiment.protects_images and not tests:  # counts are noised: they say nothing small, and may say too much
        spent = frozenset({"epsilon"})
        return Declared(action, forms, experiment.classes, most, 1, None, numbers_of(step.stage, True), spent)
    return Declared(action, forms, experiment.classes, most, fewest, by_counts, numbers_of(step.stage, False))


def let_out(content: RecordDict, step: Declared) -> RecordDict:
    """Return the answer to a step, if all of it is declared.

    Raises:
        ProtocolError: it holds anything else, or lacks something; nothing of it may leave.
    """
    weights, numbers, report = _records(content, weights=ArrayRecord, numbers=MetricRecord, report=ConfigRecord)
    abstained = _value(report, "abstained", bool)
    _same_keys(report, ["abstained"])
    _same_keys(weights, [] if abstained else list(step.tensors))
    forms = step.tensors
    if step.by_counts and not abstained:
        _check_counts("class_counts", numbers.get("class_counts"), step.classes, step.most)
        forms = step.by_counts(tuple(numbers["class_counts"]))  # type: ignore[arg-type]  # counts, as has been checked
    for name, array in weights.items():
        _check_array(name, array, forms[name])
    if abstained and step.hidden:
        raise ProtocolError("under secure aggregation an answer must not say that the site abstains")
    if abstained and not numbers:
        return content
    only_spent = abstained and set(numbers) == step.abstaining
    _same_keys(numbers, sorted(step.abstaining if only_spent else step.numbers))
    lengths, read = lengths_of(step.classes), dict(numbers)
    for table in (name for name in TABLES if name in read):
        read[table] = dense(_whole_numbers(table, read[table]), lengths[table], table)
    for name in numbers:
        if name in lengths:
            _check_counts(name, read[name], lengths[name], step.most * (UNIT + 2 if name == "calibration" else 1))
        elif not math.isfinite(_value(numbers, name, float)):
            raise ProtocolError(f"number {name!r} is not finite")
    if only_spent or step.hidden:
        return content
    counts = _value(numbers, "class_counts", list)
    if any(0 < count < step.fewest for count in counts):
        raise ProtocolError(f"number 'class_counts' counts fewer than {step.fewest} samples for some class")
    if "confusion" in read:
        check_tests(read, step.classes, step.most)  # type: ignore[arg-type]  # counts, as has been checked
        if 0 < Reliability.of(read).to_come < step.fewest:
            raise ProtocolError(f"number 'open_set' counts fewer than {step.fewest} images of classes not yet learnt")
    return content


def let_announcement_out(content: RecordDict) -> RecordDict:
    """Return an announcement of classes, if it holds nothing else.

    Raises:
        ProtocolError: it holds anything but printable names with bands.
    """
    (record,) = _records(content, announcement=ConfigRecord)
    _same_keys(record, ["classes", "bands"])
    names, bands = _value(record, "classes", list), _value(record, "bands", list)
    if {type(name) for name in names} - {str} or {type(band) for band in bands} - {int} or len(names) != len(bands):
        raise ProtocolError("the announcement is not a list of names with bands")
    Announcement(dict(zip(names, bands, strict=True)))
    return content


def let_statistics_out(content: RecordDict, fewest: Fewest) -> RecordDict:
    """Return the statistics of a site's images, if they hold nothing else and no count of too few.

    Raises:
        ProtocolError: they do; nothing of it may leave.
    """
    (record,) = _records(content, statistics=ConfigRecord)
    _same_keys(record, [field.name for field in fields(Statistics)])
    for name in record:
        if {type(one) for one in _value(record, name, list)} - {str if name == "classes" else int}:
            raise ProtocolError(f"{name!r} holds something other than it is for")
    if few := decode_statistics(content).too_few(fewest.images, fewest.patients):
        raise ProtocolError(
            f"the statistics tell of fewer than {fewest.images} images or {fewest.patients} patients: {few[0]}"
        )
    return content


def error_words(error: Exception) -> tuple[int, str]:
    """Return what of an error may leave: its code, and its class's name if this project defines that class.

    A class created at run time could carry a text in its name.
    """
    kind = type(error)
    if getattr(sys.modules.get(kind.__module__), kind.__name__, None) is not kind:
        return UNEXPECTED, "Exception"
    return (kind.code if issubclass(kind, DynammoError) else UNEXPECTED), kind.__name__


def _records(content: RecordDict, **kinds: type) -> list[Mapping[str, object]]:
    """Return the records of an answer, each of exactly its kind, in their order; refuse any other."""
    if type(content) is not RecordDict:
        raise ProtocolError(f"the answer is a {type(content).__name__}")
    _same_keys(content, list(kinds))
    return [_value(content, name, kind) for name, kind in kinds.items()]


def _value(record: Mapping[str, object], name: str, kind: type) -> Any:
    value = record.get(name)
    if type(value) is not kind:
        raise ProtocolError(f"{name!r} is a {type(value).__name__}", accepted=kind.__name__)
    return value


def _same_keys(record: Mapping[str, object], names: list[str]) -> None:
    """Refuse other names, and any other order: the order of many names could carry a message."""
    keys = list(record)
    if keys != names or {type(key) for key in keys} - {str}:
        odd = sorted({str(key) for key in keys} ^ set(names))
        raise ProtocolError(
            f"{len(odd)} names are missing, undeclared or out of order, such as {(odd or ['all'])[0]!r}",
            accepted=", ".join(names[:8]) or "none",
        )


def _check_array(name: str, array: object, form: Form) -> None:
    if type(array) is not Array or (array.dtype, array.shape, array.stype) != (*form, "numpy.ndarray"):
        raise ProtocolError(f"tensor {name!r} does not have the declared type and shape", accepted=str(form))
    types = (type(array.dtype), type(array.stype), type(array.data), type(array.shape))
    if types != (str, str, bytes, tuple) or {type(side) for side in array.shape} - {int}:
        raise ProtocolError(f"tensor {name!r} is described by something other than texts and numbers")
    dtype, start, size = _layout(form)
    # The header that belongs to the form, then the values alone: no byte is left in which anything could be said.
    if not array.data.startswith(start) or len(array.data) != size:
        raise ProtocolError(f"tensor {name!r} holds something other than its values", accepted=str(form))
    if name in PHASE_UP.values() or dtype == np.int8:
        return
    if dtype.kind != "f" or not np.isfinite(np.frombuffer(array.data, dtype, offset=len(start))).all():
        raise ProtocolError(f"tensor {name!r} holds values that are not finite floating-point numbers")


@lru_cache(maxsize=1024)
def _layout(form: Form) -> tuple[np.dtype[np.generic], bytes, int]:
    """Return the type of a tensor's values, the bytes before them, and the number of all bytes."""
    dtype, start = np.dtype(form[0]), header(*form)
    return dtype, start, len(start) + dtype.itemsize * math.prod(form[1])


def _whole_numbers(name: str, value: object) -> list[int]:
    if type(value) is not list or {type(one) for one in value} - {int}:
        raise ProtocolError(f"number {name!r} is not a list of whole numbers")
    return value


def _check_counts(name: str, value: object, length: int, most: int) -> None:
    counts = _whole_numbers(name, value)
    if len(counts) != length:
        raise ProtocolError(f"number {name!r} is not a list of {length} counts")
    if any(count < 0 for count in counts) or sum(counts) > most:
        raise ProtocolError(f"number {name!r} counts more samples than there are", accepted=f"0 to {most}")


@lru_cache(maxsize=64)
def _vector_length(experiment: Experiment, task: int, stage: Stage) -> int:
    """Return the length of a stage's answers under masks."""
    return len(Encoding(stage, experiment.build_model(task), experiment.classes, experiment.config.federation.sites))


@lru_cache(maxsize=64)
def _forms(
    experiment: Experiment, task: int, stage: Stage, counts: tuple[int, ...] | None = None
) -> Mapping[str, Form]:
    """Return the forms of the tensors that a stage sends up, as its codec writes them; building a network is costly."""
    declared = experiment.sums_form.declared(experiment.build_model(task), stage, counts)
    form = packed_form(CODECS[experiment.config.federation.compression], declared)
    return {name: (str(dtype).removeprefix("torch."), shape) for name, (dtype, shape) in form.items()}
