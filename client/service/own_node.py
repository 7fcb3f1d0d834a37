"""Run Flower's SuperNode at a site, and the process of this project that answers its messages.

The SuperNode gives its tasks only to the holder of a secret, which is new for each start and never leaves this process.
The token of a task reaches its process through a pipe. So no other account of this machine can
take a task, read a message or answer one, though all of them can reach the port. Whatever kind of task a server asks
for, an agent's too, the same process answers it (`client/service/own_app.py`). Nothing here reads the app of a run.
(flwr 1.41 and 1.42: supernode/cli/flower_supernode.py, supernode/start_client_internal.py)
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from functools import partial
from importlib import import_module
from typing import Any

import httpx
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor, SuperExecAuthHttpInterceptor
from flwr.supercore.retry import make_simple_http_retry_invoker
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supernode.fleet_http_client import FleetHttpClient

from client.service.own_app import replace
from client.service.own_code import start_command
from dynammo_core.support.processes import pauses
from dynammo_core.wire.waiting import SOON

FIRST_POLL_SECONDS, LONGEST_POLL_SECONDS = 0.1, 2.0
"""Seconds between questions to the SuperLink: few after a message, since the next may follow, more when it is idle."""
FIRST_LOOK_SECONDS, LONGEST_LOOK_SECONDS = 0.01, 0.5
"""Seconds between looks for an answer in this process's own memory."""
WATCH_SECONDS = 1.0
LARGEST_ANSWER = 64 * 2**20
"""Most bytes of a SuperLink's answer; Flower splits tensors into 20 megabytes, and an app has at most ten."""
ACQUIRE = "/flwr.proto.Runtime/AcquireTask"


class BoundedAnswer(httpx.SyncByteStream):
    """The streamed body of an answer, which raises an error when it grows too large."""

    def __init__(self, body: httpx.SyncByteStream) -> None:
        self._body = body

    def __iter__(self) -> Iterator[bytes]:
        size = 0
        for part in self._body:
            size += len(part)
            if size > LARGEST_ANSWER:
                raise RuntimeError(f"the SuperLink sent more than {LARGEST_ANSWER} bytes in one answer")
            yield part

    def close(self) -> None:
        """Close the connection's stream."""
        self._body.close()


class BoundedFleetClient(FleetHttpClient):
    """Flower's connection to its SuperLink, with a limit on the size of an answer."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._client.headers["accept-encoding"] = "identity"
        self._client.event_hooks = {"response": [_bound]}


def _bound(response: httpx.Response) -> None:
    """Limit the body before it is read."""
    if response.headers.get("content-encoding", "identity") != "identity":  # a few bytes could become any number
        raise RuntimeError("the SuperLink sent a compressed answer, although a plain one was requested")
    assert isinstance(response.stream, httpx.SyncByteStream)
    response.stream = BoundedAnswer(response.stream)


def hand_out_tasks(address: str, secret: bytes, arrived: threading.Event) -> None:
    """Have each task of the SuperNode at `address` answered, as long as this process lives.

    On failure this whole process ends, so that the SuperNode is restarted.

    Args:
        address: where the SuperNode gives out tasks.
        secret: what only this process knows.
        arrived: set whenever a whole message has arrived, so that its task can begin.
    """
    try:
        _hand_out_tasks(address, secret, arrived)
    except Exception:
        logging.getLogger("flwr").exception("cannot answer more tasks")
        os.kill(os.getpid(), signal.SIGTERM)


def _hand_out_tasks(address: str, secret: bytes, arrived: threading.Event) -> None:
    signed = SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods={ACQUIRE})
    client = RuntimeHttpClient.from_server_address(
        server_address=address,
        insecure=True,
        root_certificates=None,
        interceptors=[RuntimeVersionHttpInterceptor(component_name="SuperExec"), signed],
        retry_invoker=make_simple_http_retry_invoker(),
    )
    anything = AcquireTaskRequest(supported_task_types=list(TaskType))
    command = start_command("client.service.own_app", address, str(os.getpid()))
    answering = subprocess.Popen(command, stdin=subprocess.PIPE, text=True)
    while answering.poll() is None:
        token = client.AcquireTask(anything).token
        if token:
            print(token, file=answering.stdin, flush=True)
        arrived.wait(WATCH_SECONDS)
        arrived.clear()
    raise RuntimeError(f"the process that answers messages ended (exit code {answering.returncode})")


class WholeAnswers:
    """The SuperNode's memory, which shows an answer once all parts of it are there.

    Flower looks every half second for an answer, and every half second again for each part that is not there yet.
    """

    def __init__(self, state: Any, store: Any) -> None:
        self._state = state
        self._store = store

    def get_messages_legacy(self, **which: Any) -> Any:
        """Return the answers that are there, as soon as there is one."""
        for pause in pauses(FIRST_LOOK_SECONDS, LONGEST_LOOK_SECONDS):
            if answers := self._state.get_messages_legacy(**which):
                break
            time.sleep(pause)
        for answer in answers:
            for part in iterate_object_tree(self._store.get_object_tree(answer.metadata.message_id)):
                while self._store.get(part.object_id) == b"":
                    time.sleep(FIRST_LOOK_SECONDS)
        return answers

    def __getattr__(self, name: str) -> Any:
        return getattr(self._state, name)


def without_long_pauses(loop: Any, arrived: threading.Event) -> None:
    """Have the SuperNode's loop ask soon after a message, and send an answer once it is there; Flower pauses seconds.

    Args:
        loop: Flower's module.
        arrived: is set when a whole message has arrived.
    """
    pull, push = loop._pull_and_store_message, loop._push_messages

    def pull_one(**settings: Any) -> Any:
        for pause in pauses(FIRST_POLL_SECONDS, LONGEST_POLL_SECONDS):
            if (run := pull(**settings)) is not None:
                break
            time.sleep(pause)
        arrived.set()
        return run

    def push_whole(*, state: Any, object_store: Any, **settings: Any) -> None:
        push(state=WholeAnswers(state, object_store), object_store=object_store, **settings)

    replace(loop, "_pull_and_store_message", pull_one)
    replace(loop, "_push_messages", push_whole)
    replace(loop, "pull_objects", partial(loop.pull_objects, **SOON))


def main() -> None:
    """Run `flower-supernode`, with its own arguments, as a site does."""
    secret, arrived = secrets.token_bytes(32), threading.Event()
    shell = import_module("flwr.supernode.cli.flower_supernode")
    loop = import_module("flwr.supernode.start_client_internal")
    read, run = shell._parse_supernode_lifespan_config, shell.start_client_internal

    def with_secret() -> Any:
        config = read()
        config.superexec_auth_secret = secret
        return config

    def with_processes(**settings: Any) -> None:
        if (settings["superexec_auth_secret"], settings["isolation"]) != (secret, "process"):
            raise RuntimeError("this version of Flower does not protect its tasks by a secret")
        handing = (settings["runtime_api_address"], secret, arrived)
        threading.Thread(target=hand_out_tasks, args=handing, daemon=True).start()
        run(**settings)

    replace(shell, "_parse_supernode_lifespan_config", with_secret)
    replace(shell, "start_client_internal", with_processes)
    replace(import_module("flwr.supernode.fleet_http_connection"), "FleetHttpClient", BoundedFleetClient)
    without_long_pauses(loop, arrived)
    replace(loop, "get_fused_config_from_fab", lambda *_: {})  # or it would unpack a description of any size
    shell.flower_supernode()


if __name__ == "__main__":
    main()
