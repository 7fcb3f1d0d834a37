"""Flower's command line, as an operator: it shows the operator's token with each request.

It is a process of its own for each command, so it loads nothing that only Flower's other programs need.
"""

from __future__ import annotations

import os
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from flwr.supercore.protobuf import client as flower_client

from server.gate.operator_token import FILE_VARIABLE, HEADER, read_token

COMMAND_LINE = "flwr"


def show_token() -> None:
    """Make every Flower client of this process send the operator's token with each request from now on."""
    token = read_token(Path(os.environ[FILE_VARIABLE]))
    plain = flower_client.ProtobufClient._send

    def send(self: Any, context: Any, *, stream: bool = False) -> Any:
        context.request.headers[HEADER] = token
        return plain(self, context, stream=stream)

    flower_client.ProtobufClient._send = send  # type: ignore[method-assign]


def load_program(name: str) -> Any:
    """Return the function that is one of Flower's programs, by its name."""
    (program,) = entry_points(group="console_scripts", name=name)
    return program.load()


if __name__ == "__main__":
    show_token()
    sys.argv[0] = COMMAND_LINE
    load_program(COMMAND_LINE)()
