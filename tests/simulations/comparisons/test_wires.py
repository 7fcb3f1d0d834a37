"""Sites that lie or keep silent: what arrives of them, and that nothing else is changed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from dynammo_core.wire.tensor_store import tensor_hash
from simulations.comparisons.wires import ATTACKS, LyingGrid

app = ClientApp()
SENT = {"w": [1.0, 2.0], "bn.running_var": [4.0, 1.0]}
TRAINED = {"w": [2.0, 0.0], "bn.running_var": [6.0, 3.0], "new": [0.5, -1.0]}


def record(tensors: dict[str, list[float]]) -> ArrayRecord:
    return ArrayRecord({name: Array(np.array(values, dtype=np.float32)) for name, values in tensors.items()})


def answer(message: Message, tensors: dict[str, list[float]]) -> Message:
    numbers, report = MetricRecord({"loss": 0.5}), ConfigRecord({"abstained": False})
    return Message(RecordDict({"weights": record(tensors), "numbers": numbers, "report": report}), reply_to=message)


@app.train("fit")
def fit(message: Message, context: Context) -> Message:
    return answer(message, TRAINED)


@app.train("remember")
def remember(message: Message, context: Context) -> Message:
    return answer(message, {})


def hashes(tensors: dict[str, list[float]]) -> ConfigRecord:
    return ConfigRecord({name: tensor_hash(torch.tensor(values)) for name, values in tensors.items()})


def replies(attack: str, action: str = "fit", liars: int = 1, again: bool = False) -> list[RecordDict]:
    grid = LyingGrid(app, 3, liars=liars, attack=ATTACKS[attack])
    nothing_new = {} if again else SENT
    first = RecordDict({"weights": record(SENT), "tensors": hashes(SENT)})
    content = RecordDict({"weights": record(nothing_new), "tensors": hashes(SENT)})
    asked = [Message(content, node, f"train.{action}", group_id="g") for node in grid.get_node_ids()]
    if again:
        grid.send_and_receive([Message(first, grid.get_node_ids()[0], f"train.{action}", group_id="g")])
    arrived = {reply.metadata.src_node_id: reply.content for reply in grid.send_and_receive(asked)}
    return [arrived[node] for node in grid.get_node_ids()]


def tensors(content: RecordDict) -> dict[str, list[float]]:
    return {name: array.numpy().tolist() for name, array in content.array_records["weights"].items()}


@pytest.mark.parametrize(
    ("attack", "told"),
    [
        # Updates w: +1, -2; variance: +2, +2; new, which was not sent down: 0.5, -1. Variances stop at 0: 1 - 2 < 0.
        ("sign_flip", {"w": [0.0, 4.0], "bn.running_var": [2.0, 0.0], "new": [-0.5, 1.0]}),
        ("scale", {"w": [11.0, -18.0], "bn.running_var": [24.0, 21.0], "new": [5.0, -10.0]}),
    ],
)
def test_lies_by_hand(attack: str, told: dict[str, list[float]]) -> None:
    liar, *honest = replies(attack)
    assert tensors(liar) == told
    assert liar.metric_records["numbers"] == MetricRecord({"loss": 0.5})
    assert {array.dtype for array in liar.array_records["weights"].values()} == {"float32"}
    assert [tensors(content) for content in honest] == [TRAINED, TRAINED]


@pytest.mark.parametrize("attack", ["sign_flip", "scale"])
def test_a_lie_does_not_depend_on_whether_the_weights_travelled_again(attack: str) -> None:
    assert [tensors(content) for content in replies(attack, again=True)] == list(map(tensors, replies(attack)))


def test_a_silent_site_abstains() -> None:
    liar, *_ = replies("silence")
    assert tensors(liar) == {}
    assert dict(liar.metric_records["numbers"]) == {}
    assert liar.config_records["report"]["abstained"] is True


def test_as_many_lie_as_are_asked_to() -> None:
    assert [tensors(content) == TRAINED for content in replies("scale", liars=2)] == [False, False, True]


@pytest.mark.parametrize("attack", sorted(ATTACKS))
def test_answers_without_tensors_are_true(attack: str) -> None:
    for content in replies(attack, "remember"):
        assert dict(content.metric_records["numbers"]) == {"loss": 0.5}
        assert content.config_records["report"]["abstained"] is False
