"""What a site's SuperNode does where its tasks are not given out, and where its SuperLink sends too much."""

from __future__ import annotations

import gzip
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from flwr.app import Message, Metadata, MetricRecord, RecordDict
from flwr.app.message import make_message
from flwr.proto.fab_pb2 import Fab, GetFabRequest, GetFabResponse
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supernode.nodestate import NodeStateFactory
from site_bench import ROOT, free_port

from client.service import own_node
from client.service.own_node import BoundedFleetClient, WholeAnswers

RUNTIME = """
import sys, threading, time, uvicorn
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supernode.main import create_app
from flwr.supernode.nodestate import NodeStateFactory
from client.service.own_node import hand_out_tasks
port, secret = int(sys.argv[1]), sys.argv[2].encode()
app = create_app(NodeStateFactory(objectstore_factory=ObjectStoreFactory()), b"the secret")
server = uvicorn.Server(uvicorn.Config(app, port=port, access_log=False))
threading.Thread(target=server.run, daemon=True).start()
while not server.started:
    time.sleep(0.1)
threading.Thread(target=hand_out_tasks, args=(f"127.0.0.1:{port}", secret, threading.Event()), daemon=True).start()
time.sleep(3)
print("at work", flush=True)
time.sleep(60)
"""
"""The part of a SuperNode that gives out tasks, without a SuperLink."""
SMALL = GetFabResponse(fab=Fab(hash_str="small", content=bytes(1000))).SerializeToString()


@pytest.mark.parametrize(("secret", "lives"), [("the secret", True), ("another", False)])
def test_a_supernode_whose_tasks_nobody_gets_ends(secret: str, lives: bool) -> None:
    """So that it is started again, and does not sit there with messages that nobody answers."""
    command = [sys.executable, "-c", RUNTIME, str(free_port()), secret]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    try:
        if lives:
            assert process.stdout.readline() == "at work\n"
            assert process.poll() is None
        else:
            assert process.wait(timeout=40) != 0
    finally:
        process.kill()
        process.communicate()


class Answer(BaseHTTPRequestHandler):
    """What a SuperLink may answer, by the hash that it is asked for."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        size = int(self.headers["content-length"])
        kind = GetFabRequest.FromString(self.rfile.read(size)).hash_str
        self.send_response(200)
        if kind == "compressed":
            body = gzip.compress(bytes(2**20))
            self.send_header("content-encoding", "gzip")
        else:
            body = SMALL if kind == "small" else bytes(3 * 2**20)
        if kind == "endless":
            self.send_header("transfer-encoding", "chunked")
            self.end_headers()
            with suppress(OSError):
                while True:
                    self.wfile.write(b"10000\r\n" + bytes(2**16) + b"\r\n")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        with suppress(OSError):
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def superlink() -> Iterator[BoundedFleetClient]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "127.0.0.1")
        address = f"127.0.0.1:{server.server_port}"
        with BoundedFleetClient.from_server_address(address, True, None, []) as client:
            yield client
    server.shutdown()


@pytest.mark.parametrize(
    ("kind", "said"),
    [("large", "more than 1048576 bytes"), ("endless", "more than 1048576 bytes"), ("compressed", "compressed answer")],
)
def test_no_answer_fills_the_memory(
    superlink: BoundedFleetClient, kind: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_node, "LARGEST_ANSWER", 2**20)
    with pytest.raises(RuntimeError, match=said):
        superlink.GetFab(GetFabRequest(hash_str=kind))


def test_an_answer_is_sent_as_soon_as_all_of_it_is_there() -> None:
    factory = ObjectStoreFactory()
    state, store = NodeStateFactory(objectstore_factory=factory).state(), factory.store()
    question = make_message(Metadata(1, "asked", 1, 2, "", "", time.time(), 60.0, "train"), RecordDict())
    answer = Message(RecordDict({"numbers": MetricRecord({"a": 1.0})}), reply_to=question)
    answer.metadata.__dict__["_message_id"] = answer.object_id
    parts = {name: part.deflate() for name, part in get_all_nested_objects(answer).items()}
    found: list[Message] = []
    looking = threading.Thread(
        target=lambda: found.extend(WholeAnswers(state, store).get_messages_legacy(is_reply=True))
    )
    looking.start()
    with no_object_id_recompute():
        state.store_message(answer)
        store.preregister(1, get_object_tree(answer))
    *first, last = parts
    for name in first:
        store.put(name, parts[name])
    looking.join(0.2)
    assert looking.is_alive()
    assert not found
    store.put(last, parts[last])
    looking.join(10)
    assert [message.metadata.message_id for message in found] == [answer.metadata.message_id]


def test_an_answer_of_a_usual_size_is_taken(superlink: BoundedFleetClient) -> None:
    assert len(superlink.GetFab(GetFabRequest(hash_str="small")).fab.content) == 1000
