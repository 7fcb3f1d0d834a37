"""Flower's grid without Ray or SuperLink: server and sites take turns in this process, one answer for each pull.

The only room that uses Flower's private modules. Failures look as they do in Flower's simulation, and messages pass
through Flower's own serialisation, so that server and sites share no object and nothing travels that could not.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from copy import deepcopy
from typing import Any
from uuid import uuid4

from flwr.app import Context, Error, Message, Metadata, RecordDict
from flwr.app.message import make_message
from flwr.clientapp import ClientApp
from flwr.clientapp.client_app import ClientAppException
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.serverapp import Grid
from flwr.supercore.constant import SYSTEM_MESSAGE_TYPE
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

logger = logging.getLogger("dynammo.local_grid")
RUN_ID = 1


class LocalGrid(Grid):
    """Runs a ClientApp on `nodes` simulated nodes; node i has the partition i of `nodes`, as in Flower's simulation.

    Messages are answered in the order in which they were pushed, one in each call of `pull_messages`.
    """

    def __init__(self, client_app: ClientApp, nodes: int, run_config: Mapping[str, bool | float | int | str]) -> None:
        # Message() takes its run and its sender from here: the process plays the server's part.
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, RUN_ID, SUPERLINK_NODE_ID
        self._app = client_app
        self._run = Run.create_empty(RUN_ID)
        first = SUPERLINK_NODE_ID + 1
        self._contexts = {
            first + partition: Context(
                run_id=RUN_ID,
                node_id=first + partition,
                node_config={"partition-id": partition, "num-partitions": nodes},
                state=RecordDict(),
                run_config=dict(run_config),
            )
            for partition in range(nodes)
        }
        self._waiting: dict[str, Message] = {}
        self._last: dict[str, tuple[Any, Any]] = {}

    def set_run(self, run: Run) -> None:
        """Replace the description of the run."""
        self._run = run

    @property
    def run(self) -> Run:
        """Return the description of the run."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Make a message; deprecated by Flower in favour of `Message(...)`, but part of the interface."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        """Return the ids of the nodes, by partition."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Accept messages for nodes that exist, and return their ids; like Flower, leave out and log the others."""
        message_ids = []
        for message in messages:
            if message.metadata.dst_node_id not in self._contexts:
                logger.error("no node has the id %s", message.metadata.dst_node_id)
                continue
            message_id = str(uuid4())
            message.metadata.__dict__["_message_id"] = message_id
            self._waiting[message_id] = message
            message_ids.append(message_id)
        return message_ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Let one node answer, the one whose message was pushed first; unknown and expired messages fail at once."""
        requested = set(message_ids)
        if lost := requested - self._waiting.keys():
            return [_unavailable(message_id) for message_id in sorted(lost)]
        message_id = next((message_id for message_id in self._waiting if message_id in requested), None)
        if message_id is None:
            return []
        message = self._waiting.pop(message_id)
        if _expired(message):
            return [_unavailable(message_id)]
        reply = self._answer(message)
        return [_unavailable(message_id) if _expired(message) else reply]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Push all messages, then pull until all are answered or `timeout` seconds have passed."""
        waiting = set(self.push_messages(messages))
        limit = None if timeout is None else time.monotonic() + timeout
        replies: list[Message] = []
        while waiting and (limit is None or time.monotonic() < limit):
            arrived = self.pull_messages(waiting)
            replies += arrived
            waiting -= {reply.metadata.reply_to_message_id for reply in arrived}
        return replies

    def _answer(self, message: Message) -> Message:
        kept = self._contexts[message.metadata.dst_node_id]
        context = Context(
            kept.run_id, kept.node_id, dict(kept.node_config), deepcopy(kept.state), dict(kept.run_config)
        )
        received = self._copy(message)
        try:
            reply = self._copy(self._app(received, context))
        except Exception as error:
            logger.exception("node %s failed", message.metadata.dst_node_id)
            raised = ClientAppException(str(error))
            failure = Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, f"{type(raised)}:<'{raised}'>")
            return Message(failure, reply_to=message)
        kept.state = context.state
        return reply

    def _copy(self, message: Message) -> Message:
        """Return the message as it arrives at the other end of a wire.

        Arrays are handed over as they are: texts, whole numbers and bytes, none of which can be changed. The very
        record that the last message brought under a name, as all sites get it, arrives as it did then.
        """
        if not message.has_content():
            return message_from_proto(message_to_proto(message))
        content, arrays = message.content, message.content.array_records
        known = {
            name: arrays[name].copy() if name in arrays else self._as_before(name, content[name]) for name in content
        }
        message.content = RecordDict({name: content[name] for name, copied in known.items() if copied is None})
        arrived = message_from_proto(message_to_proto(message))
        message.content = content
        for name, record in arrived.content.items():
            if not any(isinstance(value, list) for value in record.values()):  # which a receiver could change
                self._last[name] = content[name], record.copy()
        anew = arrived.content
        arrived.content = RecordDict({name: anew[name] if copied is None else copied for name, copied in known.items()})
        return arrived

    def _as_before(self, name: str, record: Any) -> Any | None:
        """Return what arrives of the very record that came last under a name; None for another."""
        last, arrived = self._last.get(name, (None, None))
        return arrived.copy() if last is record and arrived == record else None


def _expired(message: Message) -> bool:
    return message.metadata.created_at + message.metadata.ttl <= time.time()


def _unavailable(message_id: str) -> Message:
    """Return what Flower's server answers about a message that expired, was answered before, or was never sent."""
    metadata = Metadata(
        run_id=RUN_ID,
        message_id=str(uuid4()),
        src_node_id=SUPERLINK_NODE_ID,
        dst_node_id=SUPERLINK_NODE_ID,
        reply_to_message_id=message_id,
        group_id="",
        created_at=time.time(),
        ttl=0,
        message_type=SYSTEM_MESSAGE_TYPE,
    )
    return make_message(metadata, error=Error(ErrorCode.MESSAGE_UNAVAILABLE, "message expired or unknown"))
