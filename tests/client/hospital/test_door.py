"""The door: whatever way a step takes to send an image out, a refusal leaves, and nothing of the image."""

from __future__ import annotations

import base64
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.common.serde import message_to_proto
from hypothesis import given
from hypothesis import strategies as st
from small_runs import RUN, instruction, records, small_config, small_site, step_of

from client import app as client_app
from client.hospital.door import UNEXPECTED, Declared, declared, error_words, let_announcement_out, let_out
from client.steps.actions import answer
from client.steps.site import Site
from dynammo_core.experiment import Experiment
from dynammo_core.plan import Step
from dynammo_core.support.errors import DynammoError, MemoryStoreError, ProtocolError
from dynammo_core.wire.envelope import MESSAGE_TYPES, encode_report
from dynammo_core.wire.protocol import Instruction, Report
from dynammo_core.wire.sparse_counts import dense, sparse, with_sparse_table
from simulations.engines.local_grid import LocalGrid

EXPERIMENT = Experiment(small_config())
STAGES = ("adapt", "evaluate")
LEGAL = "heads.auxiliary.weight"


@cache
def asked(stage: str) -> tuple[Step, Instruction]:
    step = step_of(EXPERIMENT, 0, stage)
    return step, instruction(EXPERIMENT, step, 0, Path("/server/says/so"))


@cache
def site() -> Site:
    return small_site(EXPERIMENT, 0, Path("/server/says/so"), RUN)


@cache
def honest(stage: str) -> tuple[Report, Declared]:
    """What a site answers, and all that it may."""
    step, sent = asked(stage)
    return answer(sent, site()), declared(site(), step)


@cache
def images() -> torch.Tensor:
    return site().train_images(tuple(range(EXPERIMENT.classes))).images


def content_of(stage: str) -> RecordDict:
    report, form = honest(stage)
    return encode_report(with_sparse_table(report), form.tensors)


# --- ways out. Each changes an honest answer so that it carries the bytes of an image.

Way = Callable[[RecordDict, np.ndarray[Any, Any]], Any]


def _raw(array: Array, **changes: Any) -> Array:
    fields = {"dtype": array.dtype, "shape": array.shape, "stype": array.stype, "data": array.data} | changes
    return Array(**fields)


def _put(content: RecordDict, record: str, key: str, value: Any) -> RecordDict:
    content[record][key] = value  # type: ignore[index]
    return content


def _more(content: RecordDict, record: Any) -> RecordDict:
    content["more"] = record
    return content


def _floats(image: np.ndarray[Any, Any], shape: tuple[int, ...], dtype: Any = np.float32) -> np.ndarray[Any, Any]:
    return np.resize(image.astype(dtype), shape)


def _not_numbers(content: RecordDict, image: np.ndarray[Any, Any]) -> RecordDict:
    """The pixels as the payload of NaNs, of which IEEE 754 leaves 22 bits free in each."""
    form = content.array_records["weights"][LEGAL].numpy()
    bits = np.resize(image.astype(np.uint32), form.shape) | np.uint32(0x7FC00000)
    return _put(content, "weights", LEGAL, Array(bits.view(np.float32)))


def _reordered(content: RecordDict, image: np.ndarray[Any, Any]) -> RecordDict:
    """100 names in an order of choice say 525 bits; two that changed places say that they may."""
    weights = dict(content.array_records["weights"])
    names = list(weights)
    names = names[1:] + names[:1]
    content["weights"] = ArrayRecord({name: weights[name] for name in names})
    return content


class Hiding(ArrayRecord):
    """A record that is one, and something else when Flower asks for its bytes."""


def _text(image: np.ndarray[Any, Any]) -> str:
    return base64.b64encode(image.tobytes()).decode()


IN_WEIGHTS: dict[str, Way] = {
    "a new tensor": lambda c, i: _put(c, "weights", "images", Array(i)),
    "a new tensor of the right type": lambda c, i: _put(c, "weights", "heads.images", Array(i.astype(np.float32))),
    "another shape": lambda c, i: _put(c, "weights", LEGAL, Array(i.astype(np.float32))),
    "one side more": lambda c, i: _put(c, "weights", LEGAL, Array(c["weights"][LEGAL].numpy()[None])),  # type: ignore[index]
    "bytes as type": lambda c, i: _put(c, "weights", LEGAL, Array(i)),
    "wider floats": lambda c, i: _put(
        c, "weights", LEGAL, Array(_floats(i, c.array_records["weights"][LEGAL].numpy().shape, np.float64))
    ),
    "integers": lambda c, i: _put(
        c, "weights", LEGAL, Array(_floats(i, c.array_records["weights"][LEGAL].numpy().shape, np.int32))
    ),
    "payload of NaNs": _not_numbers,
    "infinities": lambda c, i: _put(
        c, "weights", LEGAL, Array(np.where(_floats(i, c.array_records["weights"][LEGAL].numpy().shape) > 9, np.inf, 0))
    ),
    "behind the array": lambda c, i: _put(
        c,
        "weights",
        LEGAL,
        _raw(c.array_records["weights"][LEGAL], data=c["weights"][LEGAL].data + i.tobytes()),  # type: ignore[index]
    ),
    "in its header": lambda c, i: _put(
        c,
        "weights",
        LEGAL,
        _raw(c.array_records["weights"][LEGAL], data=c["weights"][LEGAL].data.replace(b" ", b"\t", 1)),  # type: ignore[index]
    ),
    "not an array at all": lambda c, i: _put(
        c, "weights", LEGAL, _raw(c.array_records["weights"][LEGAL], data=i.tobytes())
    ),
    "as the name of a type": lambda c, i: _put(
        c, "weights", LEGAL, _raw(c.array_records["weights"][LEGAL], dtype=_text(i))
    ),
    "as a kind of serialisation": lambda c, i: _put(
        c, "weights", LEGAL, _raw(c.array_records["weights"][LEGAL], stype=_text(i))
    ),
    "as a shape": lambda c, i: _put(
        c, "weights", LEGAL, _raw(c.array_records["weights"][LEGAL], shape=tuple(i.flatten().tolist()))
    ),
    "a tensor less": lambda c, i: c["weights"].pop(LEGAL) and c,  # type: ignore[union-attr, call-arg]
    "the order of names": _reordered,
    "abstaining with tensors": lambda c, i: _put(c, "report", "abstained", True),
    "a record that is more": lambda c, i: _more_weights(c),
}


def _more_weights(content: RecordDict) -> RecordDict:
    content["weights"] = Hiding(dict(content.array_records["weights"]))
    return content


ANYWHERE: dict[str, Way] = {
    "a record of tensors": lambda c, i: _more(c, ArrayRecord({"image": Array(i)})),
    "a record of numbers": lambda c, i: _more(c, MetricRecord({"pixels": i.flatten().tolist()})),
    "a record of texts": lambda c, i: _more(c, ConfigRecord({"image": i.tobytes()})),
    "a new number": lambda c, i: _put(c, "numbers", "mean_pixel", float(i.mean())),
    "a number's name": lambda c, i: _put(c, "numbers", _text(i), 1.0),
    "a list for a number": lambda c, i: _put(c, "numbers", "seconds", i.flatten().astype(float).tolist()),
    "a number that is none": lambda c, i: _put(c, "numbers", "seconds", float("nan")),
    "counts that are pixels": lambda c, i: _put(c, "numbers", "class_counts", i.flatten().tolist()),
    "as many counts as classes": lambda c, i: _put(
        c, "numbers", "class_counts", (i.flatten().astype(int) * 251 + 1000).tolist()[: EXPERIMENT.classes]
    ),
    "counts with fractions": lambda c, i: _put(
        c, "numbers", "class_counts", (i.flatten() / 255).tolist()[: EXPERIMENT.classes]
    ),
    "counts below none": lambda c, i: _put(c, "numbers", "class_counts", [-1] * EXPERIMENT.classes),
    "a text beside the report": lambda c, i: _put(c, "report", "note", _text(i)),
    "bytes beside the report": lambda c, i: _put(c, "report", "note", i.tobytes()),
    "bytes in its place": lambda c, i: _put(c, "report", "abstained", i.tobytes()),
    "a number in its place": lambda c, i: _put(c, "report", "abstained", int(i.sum())),
    "no record of numbers": lambda c, i: c.pop("numbers") and c,  # type: ignore[call-arg]
    "another kind of record": lambda c, i: _renamed(c),
    "a message": lambda c, i: Message(c, 1, "train.fit", group_id=_text(i)),
    "bytes": lambda c, i: i.tobytes(),
    "nothing": lambda c, i: None,
}


def _renamed(content: RecordDict) -> RecordDict:
    content["report"] = MetricRecord({"abstained": 0})
    return content


IN_TESTS: dict[str, Way] = {
    "a confusion that is an image": lambda c, i: _put(
        c, "numbers", "confusion", np.resize(i.astype(int), EXPERIMENT.classes**2).tolist()
    ),
    "a confusion that only adds up": lambda c, i: _shifted(c),
    "places of a confusion in an order that says something": lambda c, i: _put(
        c, "numbers", "confusion", [*_pairs(c)[2:], *_pairs(c)[:2]]
    ),
    "a confusion that counts nothing somewhere": lambda c, i: _put(
        c, "numbers", "confusion", [*_pairs(c), EXPERIMENT.classes**2 - 1, 0]
    ),
    "a confusion of floats": lambda c, i: _put(c, "numbers", "confusion", [0.5] * EXPERIMENT.classes**2),
    "pixels as a sum of confidences": lambda c, i: _added(c, "calibration", 2 * 15 + 3, int(i.sum())),
    "a right answer more": lambda c, i: _added(c, "calibration", 15 + 14, 1),
    "a score more": lambda c, i: _added(c, "open_set", 3, 1),
    "pixels as images of classes to come": lambda c, i: _added(c, "open_set", 128 + 3, int(i.sum()) + 1000),
}


def _added(content: RecordDict, name: str, place: int, amount: int) -> RecordDict:
    """Counts of which one is larger."""
    counts = [*content.metric_records["numbers"][name]]  # type: ignore[misc]
    counts[place] += amount
    return _put(content, "numbers", name, counts)


def _shifted(content: RecordDict) -> RecordDict:
    """One test image more of a class, and one less of another."""
    counts = dense(_pairs(content), EXPERIMENT.classes**2)
    where = next(cell for cell, count in enumerate(counts) if count)
    counts[where] -= 1
    counts[(where + EXPERIMENT.classes) % len(counts)] += 1
    return _put(content, "numbers", "confusion", sparse(counts))


def _pairs(content: RecordDict) -> list[int]:
    return [*content.metric_records["numbers"]["confusion"]]  # type: ignore[misc]


WAYS = {
    **{("adapt", name): way for name, way in (IN_WEIGHTS | ANYWHERE).items()},
    **{("evaluate", name): way for name, way in (ANYWHERE | IN_TESTS).items()},
}


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, Callable[[RecordDict], Any]], Message]]:
    """The real app, in which the step is done once and its answer is then tampered with."""
    tampering: list[Callable[[RecordDict], Any]] = []
    monkeypatch.setattr(client_app, "answer", lambda sent, _: honest(EXPERIMENT.steps[sent.step].stage.name)[0])
    monkeypatch.setattr(client_app, "encode_report", lambda *args: tampering[-1](encode_report(*args)))
    grid = LocalGrid(client_app.app, nodes=1, run_config={})

    def call(stage: str, tamper: Callable[[RecordDict], Any]) -> Message:
        tampering.append(tamper)
        step, sent = asked(stage)
        content = records(sent)
        kind = MESSAGE_TYPES[step.stage.action]
        (reply,) = grid.send_and_receive([Message(content, grid.get_node_ids()[0], kind, ttl=60.0, group_id="g")])
        return reply

    yield call


@pytest.mark.parametrize("stage", STAGES)
def test_an_honest_answer_goes_through_unchanged(
    client: Callable[[str, Callable[[RecordDict], Any]], Message], stage: str
) -> None:
    reply = client(stage, lambda content: content)
    assert not reply.has_error()
    assert reply.content.object_id == content_of(stage).object_id  # Flower's hash of all of its bytes


@pytest.mark.parametrize("way", WAYS, ids=lambda way: "-".join(way).replace(" ", "_"))
def test_an_image_does_not_leave(
    client: Callable[[str, Callable[[RecordDict], Any]], Message], way: tuple[str, str]
) -> None:
    """Refused in the client's own process; of the refusal code and class leave, and nothing of the image."""
    stage, _ = way
    image = images()[0].numpy()
    reply = client(stage, lambda content: WAYS[way](content, image))
    assert (reply.error.code, reply.error.reason) == (ProtocolError.code, "ProtocolError")
    sent = bytes(message_to_proto(reply).SerializeToString())
    assert len(sent) < 500
    assert image.tobytes() not in sent
    assert _text(image).encode() not in sent


@given(st.data())
def test_no_way_of_smuggling_any_image_is_open(data: st.DataObject) -> None:
    """The same ways, two at once, with any of the images as bytes, floats or fractions of one."""
    stage = data.draw(st.sampled_from(STAGES))
    ways = [way for (where, _), way in WAYS.items() if where == stage]
    image = images()[data.draw(st.integers(0, len(images()) - 1))].numpy()
    form = data.draw(st.sampled_from([np.uint8, np.float32, np.float16, np.int64]))
    shown = image.astype(form) / 255 if data.draw(st.booleans()) else image.astype(form)
    content: Any = content_of(stage)
    for way in data.draw(st.lists(st.sampled_from(ways), min_size=1, max_size=2)):
        try:
            content = way(content, shown)
        except (TypeError, ValueError, KeyError, AttributeError):  # Flower's own records refuse it already
            return
    with pytest.raises(ProtocolError):
        let_out(content, honest(stage)[1])


JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.binary(max_size=20),
    st.lists(st.integers()),
)


@given(st.sampled_from(STAGES), st.sampled_from(["weights", "numbers", "report"]), st.text(max_size=10), JUNK)
def test_whatever_is_put_beside_or_in_place_is_refused_or_was_the_same(
    stage: str, record: str, key: str, value: Any
) -> None:
    content = content_of(stage)
    keys = list(content[record])
    name = keys[len(key) % len(keys)] if keys and len(key) % 2 else key
    before = content[record].get(name)
    try:
        content[record][name] = value  # type: ignore[index]
    except (TypeError, ValueError):
        return
    fits = type(value) is float and name in ("seconds", "loss") and value == value and abs(value) != float("inf")
    fits |= type(value) is type(before) and value == before
    if fits:
        let_out(content, honest(stage)[1])
    else:
        with pytest.raises(ProtocolError):
            let_out(content, honest(stage)[1])


@given(st.integers(0, 10**6), st.binary(min_size=1, max_size=8))
def test_no_byte_of_a_tensor_but_its_values_can_be_chosen(place: int, noise: bytes) -> None:
    """Any change of its bytes either is refused, or is a change of a value that stays finite."""
    content = content_of("adapt")
    array = content.array_records["weights"][LEGAL]
    start = place % len(array.data)
    changed = array.data[:start] + noise + array.data[start + len(noise) :]
    content.array_records["weights"][LEGAL] = _raw(array, data=changed)
    header = len(array.data) - array.numpy().nbytes
    try:
        let_out(content, honest("adapt")[1])
    except ProtocolError:
        return
    assert len(changed) == len(array.data)
    assert changed[:header] == array.data[:header]


def test_counts_below_the_sites_minimum_do_not_leave() -> None:
    """The site leaves such classes out; if it did not, the door would."""
    content, form = content_of("evaluate"), honest("evaluate")[1]
    counts = content.metric_records["numbers"]["class_counts"]
    assert isinstance(counts, list)
    least = min(count for count in counts if count)
    let_out(content, replace(form, fewest=least))
    with pytest.raises(ProtocolError, match=f"fewer than {least + 1} samples for some class"):
        let_out(content, replace(form, fewest=least + 1))


def test_a_site_cannot_speak_for_more_samples_than_it_has() -> None:
    content, form = content_of("adapt"), honest("adapt")[1]
    counts = content.metric_records["numbers"]["class_counts"]
    assert isinstance(counts, list)
    let_out(content, replace(form, most=sum(counts)))
    with pytest.raises(ProtocolError, match="more samples than there are"):
        let_out(content, replace(form, most=sum(counts) - 1))


# --- announcements


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"classes": ["a"], "bands": [10], "more": ["x"]},
        {"bands": [10], "classes": ["a"]},
        {"classes": ["a"], "bands": [11]},
        {"classes": ["a", "b"], "bands": [10]},
        {"classes": ["a\x1b[2J"], "bands": [10]},
        {"classes": ["a" * 201], "bands": [10]},
        {"classes": [b"a"], "bands": [10]},
        {"classes": ["a"], "bands": [10.0]},
        {"classes": "a", "bands": [10]},
    ],
)
def test_an_announcement_is_names_with_bands(record: dict[str, Any]) -> None:
    let_announcement_out(RecordDict({"announcement": ConfigRecord({"classes": ["a"], "bands": [10]})}))
    with pytest.raises(ProtocolError):
        let_announcement_out(RecordDict({"announcement": ConfigRecord(record)}))
    with pytest.raises(ProtocolError):
        let_announcement_out(
            RecordDict({"announcement": ConfigRecord({"classes": [], "bands": []}), "b": ConfigRecord()})
        )


# --- beside the content


class MadeError(MemoryStoreError):
    """An error of this module, which everybody can import."""


def test_of_an_error_only_what_the_code_defines_leaves() -> None:
    assert error_words(MemoryStoreError("patient-4711")) == (MemoryStoreError.code, "MemoryStoreError")
    assert error_words(MadeError("patient-4711")) == (MemoryStoreError.code, "MadeError")
    assert error_words(KeyError("patient-4711")) == (UNEXPECTED, "KeyError")
    secret = images()[0].numpy().tobytes().hex()
    for base in (DynammoError, ValueError):
        made_up = type(f"E{secret}", (base,), {"code": int(secret[:30], 16)})
        assert error_words(made_up("x")) == (UNEXPECTED, "Exception")
    told = MemoryStoreError("x")
    told.code = int(secret[:30], 16)  # type: ignore[misc]
    assert error_words(told) == (MemoryStoreError.code, "MemoryStoreError")


def test_an_error_that_carries_an_image_in_text_name_and_code_does_not_carry_it_out(
    client: Callable[[str, Callable[[RecordDict], Any]], Message],
) -> None:
    image = images()[0].numpy()
    secret = image.tobytes().hex()

    def fail(_: RecordDict) -> Any:
        logging.getLogger("dynammo.client").error("the image is %s", secret)  # it stays in the site's own log
        raise type(f"E{secret}", (DynammoError,), {"code": int(secret[:15], 16)})(secret)

    reply = client("adapt", fail)
    assert (reply.error.code, reply.error.reason) == (UNEXPECTED, "Exception")
    sent = bytes(message_to_proto(reply).SerializeToString())
    assert secret[:16].encode() not in sent


@pytest.mark.parametrize("honest_answer", [True, False])
def test_what_travels_beside_an_answer_comes_from_the_question(
    client: Callable[[str, Callable[[RecordDict], Any]], Message], honest_answer: bool
) -> None:
    reply = client("adapt", lambda content: content if honest_answer else None)
    beside = reply.metadata
    assert reply.has_error() is not honest_answer
    assert (beside.group_id, beside.message_type, beside.message_id) == ("g", "train.fit", "")
    assert (beside.run_id, beside.dst_node_id) == (1, 1)
