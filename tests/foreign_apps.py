"""Apps that are not ours, as folders for `flwr run`: their ServerApp asks a site once and writes down the answer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import tomli_w

SERVER = """
import os
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import ServerApp
app = ServerApp()

@app.main()
def main(grid, context):
    content = RecordDict({"agent": ConfigRecord({"text": "what an agent is asked"})})
    message = Message(content, dst_node_id=int(context.run_config["node"]), message_type="train")
    (reply,) = grid.send_and_receive([message], timeout=300)
    with open(context.run_config["told"] + ".new", "w") as file:
        file.write(f"{reply.error.code} {reply.error.reason}" if reply.has_error() else "answered")
    os.rename(file.name, context.run_config["told"])
"""
CLIENT = """
from flwr.app import Message, RecordDict
from flwr.clientapp import ClientApp
app = ClientApp()

@app.train()
def train(message, context):
    return Message(RecordDict(), reply_to=message)
"""


def app_of(
    folder: Path,
    files: Mapping[str, str],
    *,
    publisher: str = "test",
    name: str = "stranger",
    version: str = "1.0.0",
    serverapp: str = "stranger_server:app",
    **others: str,
) -> Path:
    """A folder with an app; a file's name is its path there, and `others` are components beside its ServerApp."""
    components = {"serverapp": serverapp, "clientapp": "stranger:app"} | others
    app = {"publisher": publisher, "components": components, "config": {"node": "", "told": ""}}
    pyproject = {"project": {"name": name, "version": version}, "tool": {"flwr": {"app": app}}}
    for path, text in {"pyproject.toml": tomli_w.dumps(pyproject), **files}.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    return folder
