"""What one end encodes the other decodes, whatever it is; and nothing else is decoded."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import get_type_hints

import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hypothesis_numpy
from torch import Tensor

from dynammo_core.plan import Action
from dynammo_core.support.errors import ProtocolError
from dynammo_core.wire.announcement import BANDS, Announcement
from dynammo_core.wire.envelope import (
    ANNOUNCE,
    BUNDLE,
    LISTS,
    MESSAGE_TYPES,
    PHASE_TYPES,
    SMALL,
    STATISTICS,
    TENSORS,
    TEXTS,
    Parcel,
    bundled,
    decode_announcement,
    decode_instruction,
    decode_report,
    decode_statistics,
    encode_announcement,
    encode_instruction,
    encode_report,
)
from dynammo_core.wire.protocol import Instruction, Phase, Report
from dynammo_core.wire.tensor_store import tensor_hash

NAMES = st.text("abc._0", min_size=1, max_size=8)
WHOLE = st.integers(-(2**63), 2**63 - 1)


@st.composite
def tensors(draw: st.DrawFn) -> dict[str, Tensor]:
    """Tensors of every type that a codec or a phase puts on the wire, scalars and empty ones too."""
    arrays = hypothesis_numpy.arrays(
        st.sampled_from(["float32", "float64", "float16", "int64", "int8", "uint8"]),
        hypothesis_numpy.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3),
    )
    return {name: torch.from_numpy(array) for name, array in draw(st.dictionaries(NAMES, arrays, max_size=4)).items()}


@st.composite
def instructions(draw: st.DrawFn) -> Instruction:
    texts = {name: draw(st.text(st.characters(exclude_categories=["Cs"]))) for name in TEXTS}
    numbers = {name: draw(WHOLE) for name in ("step", "site", "correction", "corrected")}
    return Instruction(weights=draw(tensors()), taken=draw(st.lists(WHOLE)), **texts, **numbers)


def same_bits(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert found[name].numpy().tobytes() == tensor.numpy().tobytes()


@given(instructions(), st.data())
def test_an_instruction_comes_back_with_what_travelled_and_all_hashes(told: Instruction, data: st.DataObject) -> None:
    travelling = data.draw(st.lists(st.sampled_from(sorted(told.weights)), unique=True)) if told.weights else []
    parcel = Parcel.of(told.weights)
    found, hashes = decode_instruction(encode_instruction(told, parcel, travelling))
    same_bits(dict(found.weights), {name: told.weights[name] for name in travelling})
    assert hashes == {name: tensor_hash(tensor) for name, tensor in told.weights.items()}
    for entry in fields(Instruction):
        assert entry.name == "weights" or getattr(found, entry.name) == getattr(told, entry.name)
    whole, _ = decode_instruction(bundled(encode_instruction(told, parcel)))
    same_bits(dict(whole.weights), dict(told.weights))


def test_another_tensor_than_the_one_that_is_named_is_refused() -> None:
    told, one, other = Instruction("{}", "", "", 0, 0, "", {}), torch.tensor(1.0), torch.tensor(2.0)
    named, sent = Parcel.of({"a": one}), Parcel.of({"a": other, "b": one})
    for name in sent.arrays:
        with pytest.raises(ProtocolError, match=f"the tensor '{name}' does not have the hash"):
            decode_instruction(encode_instruction(told, replace(sent, hashes=named.hashes), [name]))


@given(
    st.booleans(),
    tensors(),
    st.dictionaries(NAMES, st.floats(allow_nan=False) | st.lists(st.integers(0, 2**62), min_size=1)),
)
def test_a_report_comes_back(
    abstained: bool, weights: dict[str, Tensor], numbers: dict[str, float | list[int]]
) -> None:
    backwards = list(reversed(weights))
    found = decode_report(encode_report(Report(abstained, weights, numbers), [*backwards, "not there"]))
    same_bits(dict(found.weights), {name: weights[name] for name in backwards})
    assert (found.abstained, found.numbers) == (abstained, numbers)
    assert list(found.numbers) == sorted(numbers)


@given(tensors())
def test_small_tensors_travel_together_and_come_back(weights: dict[str, Tensor]) -> None:
    weights |= {"large": torch.zeros(SMALL, dtype=torch.int8), "last": torch.ones(2)}
    alone = encode_report(Report(False, weights, {"seconds": 1.0}), weights)
    together = bundled(alone)
    assert set(together.array_records[TENSORS]) == ({BUNDLE, "large"} if len(weights) > 2 else {"large", "last"})
    found = decode_report(together)
    same_bits(dict(found.weights), dict(decode_report(alone).weights))
    assert found.numbers == {"seconds": 1.0}
    assert list(together) == list(alone)


def test_a_small_message_travels_in_one_piece_and_comes_back() -> None:
    weights = {"b": torch.ones(2), "a": torch.arange(6).reshape(2, 3)}
    together = bundled(encode_report(Report(True, weights, {"seconds": 1.0, "counts": [3, 4]}), weights))
    assert list(together) == list(together.config_records) == [BUNDLE]
    found = decode_report(together)
    same_bits(dict(found.weights), weights)
    assert (found.abstained, found.numbers) == (True, {"counts": [3, 4], "seconds": 1.0})
    announced = Announcement({"a": 1})
    assert decode_announcement(bundled(encode_announcement(announced))) == announced


@pytest.mark.parametrize("forged", ["text", 1, [1, 2], b"\xff", b"\x00" * 9, b""])
def test_a_forged_piece_is_refused(forged: str | int | list[int] | bytes) -> None:
    content = RecordDict({BUNDLE: ConfigRecord({BUNDLE: forged})})
    for decode in (decode_report, decode_instruction, decode_announcement):
        with pytest.raises(ProtocolError, match="the message is not"):
            decode(content)


SMALL_AND_LARGE = {"a": torch.ones(3), "b": torch.ones(2), "large": torch.zeros(SMALL, dtype=torch.int8)}
WHOLE_BUNDLE = bundled(encode_report(Report(False, SMALL_AND_LARGE), SMALL_AND_LARGE))
PARTS = WHOLE_BUNDLE.array_records[TENSORS]
BYTES = PARTS[BUNDLE].data
FORGED = {
    "cut off": BYTES[:-1],
    "longer": BYTES + b"x",
    "no index": b"",
    "endless index": b"\xff" * 8 + BYTES[8:],
    "backwards": BYTES.replace(b", 140]", b", -14]"),
    "alone": BYTES.replace(b", 140]", b",null]"),
}


@pytest.mark.parametrize("kind", FORGED)
def test_a_forged_bundle_is_refused(kind: str) -> None:
    assert FORGED[kind] != BYTES
    forged = ArrayRecord({**PARTS, BUNDLE: Array("bytes", (len(FORGED[kind]),), BUNDLE, FORGED[kind])})
    with pytest.raises(ProtocolError, match="the message is not a report"):
        decode_report(RecordDict({**WHOLE_BUNDLE, TENSORS: forged}))


@given(st.dictionaries(st.text("abc äß", min_size=1), st.sampled_from(BANDS)))
def test_an_announcement_comes_back(bands: dict[str, int]) -> None:
    assert decode_announcement(encode_announcement(Announcement(bands))) == Announcement(bands)


@given(tensors(), tensors())
def test_two_parcels_make_one(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    both, whole = Parcel.of(first) | Parcel.of(second), Parcel.of({**first, **second})
    assert (both.hashes, both.sizes) == (whole.hashes, whole.sizes)
    assert {name: array.data for name, array in both.arrays.items()} == {n: a.data for n, a in whole.arrays.items()}


def test_every_field_of_an_instruction_is_encoded_by_its_type() -> None:
    """A field that is added and not named here would travel as a whole number."""
    types = get_type_hints(Instruction, localns={"Tensor": Tensor})
    assert {name for name, kind in types.items() if kind is str} == TEXTS
    assert {name for name, kind in types.items() if kind == list[int]} == LISTS
    assert {kind for name, kind in types.items() if name not in {*TEXTS, *LISTS, "weights"}} == {int}


def test_every_question_has_a_message_type_of_its_own() -> None:
    assert set(MESSAGE_TYPES) == set(Action)
    assert set(PHASE_TYPES) == set(Phase)
    every = [*MESSAGE_TYPES.values(), *PHASE_TYPES.values(), ANNOUNCE, STATISTICS]
    assert len(set(every)) == len(every)


DECODERS = {
    "an instruction": decode_instruction,
    "a report": decode_report,
    "an announcement": decode_announcement,
    "statistics": decode_statistics,
}


@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict({name: MetricRecord({"a": 1}) for name in ("weights", "tensors", "instruction", "announcement")}),
        RecordDict({name: ConfigRecord({"a": 1}) for name in ("weights", "tensors", "instruction", "announcement")}),
    ],
    ids=["nothing", "numbers", "settings"],
)
def test_what_is_something_else_is_refused_by_name(kind: str, content: RecordDict) -> None:
    with pytest.raises(ProtocolError, match=f"the message is not {kind}"):
        DECODERS[kind](content)
