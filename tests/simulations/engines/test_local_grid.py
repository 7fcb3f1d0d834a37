"""The in-process grid: order, isolation, and failures that look like Flower's."""

from __future__ import annotations

import logging
import time

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from simulations.engines.local_grid import LocalGrid

APP_FAILED, UNAVAILABLE = 2, 3  # Flower's documented error codes

app = ClientApp()
handled: list[RecordDict] = []


@app.train("echo")
def echo(message: Message, context: Context) -> Message:
    handled.append(message.content)
    message.content["numbers"]["n"] = -1  # must not reach the sender
    context.state["calls"] = MetricRecord({"n": calls(context) + 1})
    numbers = MetricRecord({"partition": int(context.node_config["partition-id"]), "calls": calls(context)})
    weights = ArrayRecord({"w": Array(message.content["weights"]["w"].numpy() * 2)})
    settings = ConfigRecord({**context.node_config, **context.run_config})
    return Message(RecordDict({"numbers": numbers, "weights": weights, "settings": settings}), reply_to=message)


@app.train("fall")
def fall(message: Message, context: Context) -> Message:
    context.state["calls"] = MetricRecord({"n": 100})
    raise ValueError("patient 7")


@app.train("refuse")
def refuse(message: Message, context: Context) -> Message:
    return Message(Error(101, "ConfigError"), reply_to=message)


@app.train("overflow")
def overflow(message: Message, context: Context) -> Message:
    return Message(RecordDict({"numbers": MetricRecord({"n": 2**70})}), reply_to=message)  # the wire carries 64 bits


@app.train("spoil")
def spoil(message: Message, context: Context) -> Message:
    received = message.content["settings"]
    told = ConfigRecord({"word": received["word"], "counts": list(received["counts"])})
    received["word"] = "spoilt"
    received["counts"].append(9)
    return Message(RecordDict({"told": told}), reply_to=message)


@app.train("dawdle")
def dawdle(message: Message, context: Context) -> Message:
    time.sleep(0.3)
    return Message(RecordDict(), reply_to=message)


def calls(context: Context) -> int:
    return int(context.state["calls"]["n"]) if "calls" in context.state else 0


def content(n: int = 1) -> RecordDict:
    weights = ArrayRecord({"w": Array(np.arange(3, dtype=np.float32))})
    return RecordDict({"numbers": MetricRecord({"n": n}), "weights": weights})


@pytest.fixture
def grid() -> LocalGrid:
    handled.clear()
    return LocalGrid(app, nodes=3, run_config={"run": "x"})


def send(grid: LocalGrid, *actions: str, ttl: float | None = None) -> list[str]:
    """Push one message an action, to the nodes in turn."""
    nodes = grid.get_node_ids()
    messages = [
        Message(content(), nodes[i % len(nodes)], f"train.{action}", ttl=ttl) for i, action in enumerate(actions)
    ]
    return grid.push_messages(messages)


def test_one_node_answers_in_each_pull_in_the_order_of_pushing(grid: LocalGrid) -> None:
    ids = send(grid, "echo", "echo", "echo", "echo", "echo")
    assert not handled
    replies = []
    for answered in range(1, 6):
        (reply,) = grid.pull_messages(ids[answered - 1 :])
        replies.append(reply)
        assert len(handled) == answered
    assert [reply.metadata.reply_to_message_id for reply in replies] == ids
    assert [reply.content["numbers"]["partition"] for reply in replies] == [0, 1, 2, 0, 1]
    assert [reply.content["numbers"]["calls"] for reply in replies] == [1, 1, 1, 2, 2]  # state stays with its node


def test_only_the_messages_asked_for_are_answered(grid: LocalGrid) -> None:
    first, second, third = send(grid, "echo", "echo", "echo")
    assert [reply.metadata.reply_to_message_id for reply in grid.pull_messages([third, second])] == [second]
    assert [reply.metadata.reply_to_message_id for reply in grid.pull_messages([first])] == [first]
    assert grid.pull_messages([]) == []


def test_a_node_knows_its_partition_and_the_run_config(grid: LocalGrid) -> None:
    (reply,) = grid.pull_messages(send(grid, "echo"))
    assert dict(reply.content["settings"]) == {"partition-id": 0, "num-partitions": 3, "run": "x"}
    assert len(grid.get_node_ids()) == len(set(grid.get_node_ids())) == 3


def test_server_and_site_share_nothing(grid: LocalGrid) -> None:
    sent = content(5)
    (reply,) = grid.send_and_receive([Message(sent, grid.get_node_ids()[0], "train.echo")])
    assert sent["numbers"]["n"] == 5
    assert handled[0] is not sent
    np.testing.assert_array_equal(reply.content["weights"]["w"].numpy(), [0, 2, 4])
    np.testing.assert_array_equal(sent["weights"]["w"].numpy(), [0, 1, 2])


@pytest.mark.parametrize("counts", [[1, 2], []])
def test_a_record_that_all_nodes_get_arrives_as_it_is_when_it_is_read(grid: LocalGrid, counts: list[int]) -> None:
    shared, words, arrived = ConfigRecord({"word": "", "counts": counts}), ["one", "one", "two"], []
    for node, word in zip(grid.get_node_ids(), words, strict=True):
        shared["word"] = word
        (reply,) = grid.send_and_receive([Message(RecordDict({"settings": shared}), node, "train.spoil")])
        arrived.append(reply.content["told"])
    assert [record["word"] for record in arrived] == words
    assert [record["counts"] for record in arrived] == [counts] * 3


def test_a_failing_node_answers_with_flowers_error_and_is_logged(
    grid: LocalGrid, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        replies = [grid.pull_messages([message_id])[0] for message_id in send(grid, "echo", "fall", "echo")]
    assert [reply.has_error() for reply in replies] == [False, True, False]
    assert replies[1].error.code == APP_FAILED
    assert "patient 7" in str(replies[1].error.reason)
    assert "ValueError: patient 7" in caplog.text
    again = grid.pull_messages(send(grid, "echo", "echo")[1:])[0]
    assert again.content["numbers"]["calls"] == 1  # what the node changed before it failed is not kept


def test_an_error_that_the_site_sends_keeps_its_code(grid: LocalGrid) -> None:
    (reply,) = grid.pull_messages(send(grid, "refuse"))
    assert reply.error == Error(101, "ConfigError")


@pytest.mark.parametrize("action", ["overflow", "unheard_of"])
def test_what_flower_cannot_carry_or_route_fails_at_the_site(grid: LocalGrid, action: str) -> None:
    (reply,) = grid.pull_messages(send(grid, action))
    assert reply.error.code == APP_FAILED


def test_what_flower_cannot_carry_fails_at_the_server(grid: LocalGrid) -> None:
    with pytest.raises(ValueError, match="out of range"):
        grid.send_and_receive([Message(content(2**70), grid.get_node_ids()[0], "train.echo")])


def test_a_message_expires_before_or_while_it_is_answered(grid: LocalGrid) -> None:
    before, meanwhile = send(grid, "echo", ttl=0.01)[0], send(grid, "dawdle", ttl=0.2)[0]
    time.sleep(0.02)
    for message_id in (before, meanwhile):
        (reply,) = grid.pull_messages([message_id])
        assert reply.error.code == UNAVAILABLE
        assert reply.metadata.reply_to_message_id == message_id
    assert not handled


def test_answers_are_given_once(grid: LocalGrid) -> None:
    (message_id,) = send(grid, "echo")
    grid.pull_messages([message_id])
    assert grid.pull_messages([message_id])[0].error.code == UNAVAILABLE
    assert len(handled) == 1


def test_a_message_to_nobody_is_left_out(grid: LocalGrid) -> None:
    somebody = grid.get_node_ids()[0]
    ids = grid.push_messages([Message(content(), 999, "train.echo"), Message(content(), somebody, "train.echo")])
    assert len(ids) == 1
    assert grid.pull_messages(ids)[0].metadata.src_node_id == somebody


def test_send_and_receive_stops_at_its_timeout(grid: LocalGrid) -> None:
    messages = [Message(content(), node, "train.dawdle") for node in grid.get_node_ids()]
    assert len(grid.send_and_receive(messages, timeout=0.25)) == 1  # of 0.3 s each: the first alone began in time
    messages = [Message(content(), node, "train.echo") for node in grid.get_node_ids()]
    assert len(grid.send_and_receive(messages)) == 3
