"""Ask the sites, before anyone trains, which classes they can contribute and what their images are like."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from dynammo_core.support.errors import ProtocolError
from dynammo_core.support.files import write_atomically
from dynammo_core.wire.envelope import ANNOUNCE, STATISTICS, decode_announcement, decode_statistics
from server.jobs.limits import COUNTING_SECONDS
from server.run.exchange import error_class

SECONDS = 120.0
"""Seconds for an answer with classes."""
Read = Callable[[RecordDict], dict[str, Any]]


def ask_all(grid: Grid, output: Path) -> None:
    """Write as JSON what every connected site announces: {site: {"classes": {name: band}} or {"error": class}}."""
    _ask(grid, output, ANNOUNCE, lambda content: {"classes": dict(decode_announcement(content).bands)}, SECONDS)


def ask_for_statistics(grid: Grid, output: Path) -> None:
    """Write as JSON what every connected site counts: {site: `Statistics.as_fields` or {"error": class}}."""
    _ask(grid, output, STATISTICS, lambda content: decode_statistics(content).as_fields(), COUNTING_SECONDS)


def _ask(grid: Grid, output: Path, kind: str, read: Read, seconds: float) -> None:
    names = {node.node_id: str(node.name) for node in grid.get_nodes()}
    by_site: dict[str, dict[str, Any]] = {name: {"error": "NoAnswerBeforeDeadline"} for name in names.values()}
    messages = [Message(RecordDict(), node, kind, ttl=seconds) for node in sorted(names)]
    for reply in grid.send_and_receive(messages, timeout=seconds) if messages else ():
        if name := names.get(reply.metadata.src_node_id):  # for a site that is gone the SuperLink itself answers
            by_site[name] = _read(reply, read)
    # Sites by name; inside, each answer in its own order, which the tables of people follow.
    write_atomically(output, json.dumps(dict(sorted(by_site.items())), indent=2).encode() + b"\n")


def _read(reply: Message, read: Read) -> dict[str, Any]:
    if reply.has_error():
        return {"error": error_class(reply.error.reason)}
    try:
        return read(reply.content)
    except ProtocolError as error:
        return {"error": type(error).__name__}
