"""Codecs: what comes out of them is near what went in, within the bounds that their arithmetic gives."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dynammo_core.configuration.federation import FederationSettings
from dynammo_core.support.seeding import seeded_generator
from dynammo_core.wire.compression import CODECS, carried, pack, packed_form, unpack
from dynammo_core.wire.protocol import tensor_bytes

every_codec = pytest.mark.parametrize("name", sorted(CODECS))
SEEDS = st.integers(0, 10_000)


def tensors(seed: int) -> dict[str, Tensor]:
    """A kernel, a matrix, a vector, a number and a sum, as a method sends them."""
    generator = seeded_generator("codecs", seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    return {
        "kernel": draw(4, 3, 2, 2),
        "matrix": draw(5, 7) * 1e-3,
        "vector": draw(6),
        "number": draw(),
        "sum": draw(3, 3).double() * 1e6,
    }


def test_the_table_has_what_the_configuration_accepts() -> None:
    values = FederationSettings.model_json_schema()["properties"]["compression"]["enum"]
    assert set(CODECS) == set(values)


@every_codec
def test_what_is_packed_has_the_declared_form(name: str) -> None:
    codec, whole = CODECS[name], tensors(0)
    packed = pack(codec, whole, tensors(1))
    assert {key: (part.dtype, tuple(part.shape)) for key, part in packed.items()} == packed_form(codec, whole)
    arrived = unpack(codec, packed, tensors(1))
    assert {key: (t.dtype, t.shape) for key, t in arrived.items()} == {k: (t.dtype, t.shape) for k, t in whole.items()}


@every_codec
def test_sums_in_float64_arrive_as_they_are(name: str) -> None:
    codec, whole = CODECS[name], tensors(0)
    assert torch.equal(unpack(codec, pack(codec, whole, {}), {})["sum"], whole["sum"])
    assert torch.equal(carried(codec, whole)["sum"], whole["sum"])


def test_without_compression_every_bit_arrives() -> None:
    packed = pack(CODECS["none"], tensors(0), tensors(1))
    assert all(packed[name] is tensor or torch.equal(packed[name], tensor) for name, tensor in tensors(0).items())
    assert list(packed) == list(tensors(0))


def test_bytes_by_hand() -> None:
    """48 + 35 + 6 + 1 values of float32, and 9 of float64, which stay; in int8 9 rows have a scale of 4 bytes."""
    whole = tensors(0)
    assert tensor_bytes(pack(CODECS["none"], whole, {})) == 4 * 90 + 72
    assert tensor_bytes(pack(CODECS["float16"], whole, {})) == 2 * 90 + 72
    assert tensor_bytes(pack(CODECS["int8"], whole, {})) == (48 + 35) + 4 * 9 + 2 * 7 + 72


@given(SEEDS)
def test_half_precision_has_eleven_bits(seed: int) -> None:
    whole = tensors(seed)
    arrived = carried(CODECS["float16"], whole)
    for name, tensor in whole.items():
        assert bool(((arrived[name] - tensor).abs() <= tensor.abs() * 2**-11 + 2**-25).all())


@every_codec
def test_what_a_site_was_sent_it_can_be_sent_again(name: str) -> None:
    """The server computes with what arrives, so encoding it once more loses nothing."""
    once = carried(CODECS[name], tensors(0))
    again = carried(CODECS[name], once)
    assert all(torch.equal(again[key], tensor) for key, tensor in once.items())


@given(SEEDS)
def test_a_weight_sent_down_in_a_byte_is_off_by_half_a_step_and_never_more(seed: int) -> None:
    """A step is the row's largest value over 127; encoded again, what arrives is the same bytes."""
    codec, whole = CODECS["int8_both"], tensors(seed)
    arrived = carried(codec, whole)
    for name in ("kernel", "matrix"):
        off, largest = (t.flatten(1).abs() for t in (arrived[name] - whole[name], whole[name]))
        assert bool((off <= largest.amax(dim=1, keepdim=True) * (1 / 254 + 2**-22)).all())
        assert float(off.max()) > 0
    assert torch.equal(arrived["vector"], whole["vector"].half().float())
    first, again = (pack(codec.downwards, sent, {}) for sent in (whole, arrived))
    assert all(torch.equal(again[part], tensor) for part, tensor in first.items())
    assert tensor_bytes(first) == (48 + 35) + 4 * 9 + 2 * 7 + 72


@given(SEEDS)
def test_a_byte_is_off_by_at_most_half_a_step_of_its_row(seed: int) -> None:
    """A step is the row's largest difference over 127; float32 itself adds a few parts in 10^7."""
    whole, sent = tensors(seed), tensors(seed + 1)
    arrived = unpack(CODECS["int8"], pack(CODECS["int8"], whole, sent), sent)
    for name in ("kernel", "matrix"):
        difference = (whole[name] - sent[name]).flatten(1).abs()
        off = (arrived[name] - whole[name]).flatten(1).abs()
        assert bool((off <= difference.amax(dim=1, keepdim=True) / 254 + 1e-6).all())
        assert float(off.max()) > 0


def test_what_is_not_sent_down_is_the_difference_to_nothing() -> None:
    whole = {"matrix": torch.tensor([[127.0, -1.0], [0.0, 0.0]])}
    packed = pack(CODECS["int8"], whole, {})
    assert packed["matrix"].tolist() == [[127, -1], [0, 0]]
    assert packed["matrix:scale"].tolist() == [1.0, 0.0]
    assert torch.equal(unpack(CODECS["int8"], packed, {})["matrix"], whole["matrix"])


@pytest.mark.parametrize("name", ["float16", "int8", "int8_both"])
def test_a_variance_stays_at_least_zero(name: str) -> None:
    """From 1 down to a ten-thousandth: as a difference in few bits it could come out below zero."""
    whole, sent = {"running_var": torch.tensor([1e-4, 1e-9, 0.0])}, {"running_var": torch.ones(3)}
    assert bool((unpack(CODECS[name], pack(CODECS[name], whole, sent), sent)["running_var"] >= 0).all())


@pytest.mark.parametrize("name", ["float16", "int8", "int8_both"])
def test_what_is_no_number_stays_none(name: str) -> None:
    """Whoever checks what arrives must see it."""
    for value in (torch.nan, torch.inf):
        whole = {"vector": torch.tensor([1.0, value]), "matrix": torch.tensor([[1.0, value]])}
        arrived = unpack(CODECS[name], pack(CODECS[name], whole, {}), {})
        assert not any(bool(torch.isfinite(tensor).all()) for tensor in arrived.values())
