"""Encode and decode all that travels, side by side: Instruction, Report and Announcement as Flower's records.

This is the one file of the library that knows Flower, so that both ends write and read a message by the same lines.
Decoding trusts nothing: whatever a damaged or forged message holds, a decoder returns a valid object or raises
ProtocolError. What a message may contain beyond that is for `protocol_checks` and the site's door to say.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from functools import cached_property, lru_cache
from types import MappingProxyType
from typing import TypeVar

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict
from torch import Tensor

from dynammo_core.plan import Action
from dynammo_core.support.errors import ProtocolError
from dynammo_core.wire.announcement import Announcement
from dynammo_core.wire.arrays import name_of, read, written
from dynammo_core.wire.protocol import Instruction, Phase, Report, tensor_bytes
from dynammo_core.wire.statistics import Statistics
from dynammo_core.wire.tensor_store import decoded, tensor_hash

ANNOUNCE = "query.announce"
"""The type of the message that asks for an announcement; it has no content."""
STATISTICS = "query.statistics"
"""The same for the statistics of a site's images."""

TENSORS, HASHES, INSTRUCTION = "weights", "tensors", "instruction"
NUMBERS, REPORT, ANNOUNCEMENT, COUNTS = "numbers", "report", "announcement", "statistics"
"""Names of the records in a message."""

BUNDLE, SMALL, INDEX_BYTES = ":bundle", 1 << 18, 8
"""Name of what holds a whole small message, or small tensors; most bytes of the tensors of the one, and of each of the
others; bytes of the length of their index."""

R = TypeVar("R", ArrayRecord, ConfigRecord, MetricRecord)
FIELDS = tuple(entry.name for entry in fields(Instruction) if entry.name != "weights")
COMMON = tuple(name for name in FIELDS if name not in ("site", "taken"))
TEXTS, LISTS = frozenset({"experiment", "code_hash", "run", "workspace", "packages"}), frozenset({"taken"})
"""All fields of an instruction, those that are the same for all sites, the texts, and the lists of whole numbers; the
others are whole numbers."""

MESSAGE_TYPES: Mapping[Action, str] = MappingProxyType(
    {action: "evaluate" if action is Action.EVALUATE else f"train.{action.value}" for action in Action}
)
PHASE_TYPES: Mapping[Phase, str] = MappingProxyType({phase: f"train.{phase.value}" for phase in Phase})
"""The types of the Flower messages that ask for a stage's action, or for an exchange of secure aggregation."""


@dataclass(frozen=True)
class Parcel:
    """Tensors in Flower's form, serialised once however many sites receive them.

    Attributes:
        hashes: the SHA-256 of each tensor, by name.
        arrays: each tensor in Flower's form, by name.
        sizes: bytes of each tensor, by name.
    """

    hashes: Mapping[str, str]
    arrays: Mapping[str, Array]
    sizes: Mapping[str, int]
    _records: dict[tuple[str, ...], ArrayRecord] = field(default_factory=dict, compare=False)

    @cached_property
    def hash_record(self) -> ConfigRecord:
        """Return the hashes in Flower's form, the same object for all sites."""
        return ConfigRecord(dict(self.hashes))

    def record(self, names: Iterable[str]) -> ArrayRecord:
        """Return some of the tensors as Flower's record, the same object for all sites that receive just these."""
        key = tuple(names)
        if key not in self._records:
            self._records[key] = ArrayRecord({name: self.arrays[name] for name in key})
        return self._records[key]

    @staticmethod
    def of(tensors: Mapping[str, Tensor]) -> Parcel:
        """Serialise tensors as they travel, so after the codec."""
        return Parcel(
            {name: tensor_hash(tensor) for name, tensor in tensors.items()},
            {name: _array(tensor) for name, tensor in tensors.items()},
            {name: tensor_bytes({name: tensor}) for name, tensor in tensors.items()},
        )

    def __or__(self, other: Parcel) -> Parcel:
        """Return the tensors of both."""
        return Parcel({**self.hashes, **other.hashes}, {**self.arrays, **other.arrays}, {**self.sizes, **other.sizes})


@contextmanager
def decoding(kind: str) -> Iterator[None]:
    """Turn whatever a decoder raises into a ProtocolError that says what the message should have been."""
    try:
        yield
    except Exception as error:  # what a damaged or forged message makes a decoder raise has no common type
        raise ProtocolError(f"the message is not {kind} ({type(error).__name__}: {error})") from error


def bundled(content: RecordDict) -> RecordDict:
    """Return the same message in fewer parts, which `decode_...` takes apart again: one, or one for small tensors.

    Between a server and its sites, Flower sends each record in a request of its own at every hop, and each array in
    two: a network of 35 small tensors would take 1,200 requests a round among three sites.
    """
    tensors = content.array_records.get(TENSORS, ArrayRecord())
    if sum(len(array.data) for array in tensors.values()) <= SMALL:
        return RecordDict({BUNDLE: ConfigRecord({BUNDLE: recorddict_to_proto(content).SerializeToString()})})
    small = {name for name, array in tensors.items() if len(array.data) <= SMALL}
    if len(small) < 2:
        return content
    index = json.dumps(
        [
            [name, array.dtype, list(array.shape), array.stype, len(array.data) if name in small else None]
            for name, array in tensors.items()
        ]
    ).encode()
    parts = [array.data for name, array in tensors.items() if name in small]
    data = b"".join([len(index).to_bytes(INDEX_BYTES, "big"), index, *parts])
    rest = {name: array for name, array in tensors.items() if name not in small}
    together = ArrayRecord({BUNDLE: Array("bytes", (len(data),), BUNDLE, data), **rest})
    return RecordDict({name: together if name == TENSORS else record for name, record in content.items()})


def _opened(content: RecordDict) -> RecordDict:
    """Return the message in a bundle of all of it, or else what was given."""
    if BUNDLE not in content:
        return content
    return recorddict_from_proto(ProtoRecordDict.FromString(_record(content, BUNDLE, ConfigRecord)[BUNDLE]))


def _record(content: RecordDict, name: str, kind: type[R]) -> R:
    """Return a record of a message, which would build a dictionary of all records of a kind to find this one."""
    if not isinstance(record := content[name], kind):
        raise TypeError(f"the record {name!r} is a {type(record).__name__}")
    return record


def _arrays(content: RecordDict) -> Mapping[str, Array]:
    """Return the arrays that were sent, in their order; raise where a bundle does not hold what its index says."""
    tensors = _record(content, TENSORS, ArrayRecord)
    if BUNDLE not in tensors or tensors[BUNDLE].stype != BUNDLE:
        return tensors
    data = tensors[BUNDLE].data
    at = INDEX_BYTES + int.from_bytes(data[:INDEX_BYTES], "big")
    arrays: dict[str, Array] = {}
    for name, dtype, shape, stype, size in json.loads(data[INDEX_BYTES:at]):
        if size is None:
            arrays[name] = tensors[name]
            continue
        if not 0 <= size <= min(SMALL, len(data) - at):
            raise ValueError(f"the bundle ends before the tensor {name!r}")
        arrays[name] = Array(dtype, tuple(shape), stype, data[at : at + size])
        at += size
    if at != len(data) or len(arrays.keys() & tensors.keys()) != len(tensors) - 1:
        raise ValueError("the bundle holds more than its index says")
    return arrays


def encode_instruction(instruction: Instruction, parcel: Parcel, travelling: Iterable[str] | None = None) -> RecordDict:
    """Encode an instruction, whose tensors are those of a parcel.

    Args:
        instruction: its `weights` are not read.
        parcel: all tensors that are meant, named by their hashes.
        travelling: names of the tensors that the site does not hold; all by default.
    """
    told = _told_to_all(*(getattr(instruction, name) for name in COMMON)).copy()
    told["site"], told["taken"] = instruction.site, instruction.taken
    tensors = parcel.record(parcel.arrays if travelling is None else travelling)
    return RecordDict({TENSORS: tensors, HASHES: parcel.hash_record, INSTRUCTION: told})


@lru_cache(maxsize=4)
def _told_to_all(*values: str | int) -> ConfigRecord:
    return ConfigRecord(dict(zip(COMMON, values, strict=True)))


def decode_instruction(content: RecordDict) -> tuple[Instruction, dict[str, str]]:
    """Decode an instruction with the tensors that travelled, and the hashes of all that are meant, by name.

    Sites that one process plays get the same tensors, which they must not change in place.

    Raises:
        ProtocolError: the content is not an instruction, or a tensor does not have its hash.
    """
    with decoding("an instruction"):
        content = _opened(content)
        record = _record(content, INSTRUCTION, ConfigRecord)
        values = {name: _field(name, record[name]) for name in FIELDS}
        hashes = {name: str(known) for name, known in _record(content, HASHES, ConfigRecord).items()}
        weights = {name: decoded(array.data) for name, array in _arrays(content).items()}
        for name, (_, known) in weights.items():
            if known != hashes.get(name):
                raise ProtocolError(f"the tensor {name!r} does not have the hash that it is named by")
        tensors = {name: tensor for name, (tensor, _) in weights.items()}
        return Instruction(weights=tensors, **values), hashes  # type: ignore[arg-type]  # by `_field`


def encode_report(report: Report, order: Iterable[str]) -> RecordDict:
    """Encode a report, its tensors in a declared order and its numbers in alphabetical order.

    Args:
        report: what a site answers, its tensors as they travel.
        order: names of the tensors; those that the report does not have are left out.
    """
    arrays = ArrayRecord()
    for name in (name for name in order if name in report.weights):
        arrays[name] = _array(report.weights[name])
    return RecordDict(
        {
            TENSORS: arrays,
            NUMBERS: MetricRecord({name: report.numbers[name] for name in sorted(report.numbers)}),
            REPORT: ConfigRecord({"abstained": report.abstained}),
        }
    )


def decode_report(content: RecordDict) -> Report:
    """Decode a report; its tensors are those that travelled.

    Raises:
        ProtocolError: the content is not a report.
    """
    with decoding("a report"):
        content = _opened(content)
        numbers = {
            name: [int(count) for count in value] if isinstance(value, list) else float(value)
            for name, value in _record(content, NUMBERS, MetricRecord).items()
        }
        tensors = {name: torch.from_numpy(read(array.data).copy()) for name, array in _arrays(content).items()}
        return Report(bool(_record(content, REPORT, ConfigRecord)["abstained"]), tensors, numbers)


def encode_announcement(announcement: Announcement) -> RecordDict:
    """Encode what a site announces: its classes, and a band of the number of images of each."""
    bands = dict(announcement.bands)
    return RecordDict({ANNOUNCEMENT: ConfigRecord({"classes": list(bands), "bands": list(bands.values())})})


def decode_announcement(content: RecordDict) -> Announcement:
    """Decode what a site announces.

    Raises:
        ProtocolError: the content is not an announcement.
    """
    with decoding("an announcement"):
        content = _opened(content)
        record = _record(content, ANNOUNCEMENT, ConfigRecord)
        classes, bands = record["classes"], record["bands"]
        if not isinstance(classes, list) or not isinstance(bands, list):
            raise ProtocolError("classes and bands are not lists")
        return Announcement({str(name): int(str(band)) for name, band in zip(classes, bands, strict=True)})


def encode_statistics(statistics: Statistics) -> RecordDict:
    """Encode the statistics of a site's images."""
    return RecordDict({COUNTS: ConfigRecord({name: list(value) for name, value in vars(statistics).items()})})


def decode_statistics(content: RecordDict) -> Statistics:
    """Decode the statistics of a site's images.

    Raises:
        ProtocolError: the content is no such statistics.
    """
    with decoding("statistics"):
        record = dict(_record(_opened(content), COUNTS, ConfigRecord))
        classes = tuple(map(str, record.pop("classes")))  # type: ignore[arg-type]  # or it raises
        return Statistics(classes, **{name: tuple(value) for name, value in record.items()})  # type: ignore[arg-type]


def _field(name: str, value: object) -> str | int | list[int]:
    if name in TEXTS:
        return str(value)
    return list(map(int, value)) if name in LISTS else int(value)  # type: ignore[call-overload]  # or it raises


def _array(tensor: Tensor) -> Array:
    values = tensor.numpy(force=True)
    return Array(name_of(values.dtype), values.shape, "numpy.ndarray", written(values))
