"""Ask the sites which classes they can contribute, before anyone trains on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from dynammo_core.support.errors import ProtocolError
from dynammo_core.support.files import write_atomically
from dynammo_core.wire.envelope import ANNOUNCE, decode_announcement
from server.run.exchange import error_class

SECONDS = 120.0
Announcements = dict[str, dict[str, Any]]


def ask_all(grid: Grid, output: Path) -> None:
    """Write as JSON what every connected site announces: {site: {"classes": {name: band}} or {"error": class}}."""
    names = {node.node_id: str(node.name) for node in grid.get_nodes()}
    by_site: Announcements = {name: {"error": "NoAnswerBeforeDeadline"} for name in names.values()}
    messages = [Message(RecordDict(), node, ANNOUNCE, ttl=SECONDS) for node in sorted(names)]
    for reply in grid.send_and_receive(messages, timeout=SECONDS) if messages else ():
        if name := names.get(reply.metadata.src_node_id):  # for a site that is gone the SuperLink itself answers
            by_site[name] = _read(reply)
    write_atomically(output, json.dumps(by_site, indent=2, sort_keys=True).encode() + b"\n")


def _read(reply: Message) -> dict[str, Any]:
    if reply.has_error():
        return {"error": error_class(reply.error.reason)}
    try:
        return {"classes": dict(decode_announcement(reply.content).bands)}
    except ProtocolError as error:
        return {"error": type(error).__name__}
