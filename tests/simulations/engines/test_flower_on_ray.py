"""A Flower run over two real Ray nodes on this machine: the sites work at both, and no cluster is no start."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dynammo_core.support.errors import RunError
from simulations.engines.flower_engine import run_flower

pytestmark = pytest.mark.slow
NOBODY_LISTENS = "127.0.0.1:9"  # the port of the discard protocol, which no Ray uses


# Four sites that tell at which node of the cluster they work.
APP = {
    "pyproject.toml": """
[project]
name = "whereabouts"
version = "0.1.0"
license = "Apache-2.0"
[tool.flwr.app]
publisher = "test"
fab-include = ["*.py"]
components = { serverapp = "whereabouts_server:app", clientapp = "whereabouts_client:app" }
config = { out = "" }
""",
    "whereabouts_server.py": """
import json, time
from pathlib import Path
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import ServerApp

app = ServerApp()


@app.main()
def main(grid, context):
    while len(nodes := list(grid.get_node_ids())) < 4:
        time.sleep(0.1)
    asked = RecordDict({"config": ConfigRecord({"wait": 0.5})})
    replies = grid.send_and_receive([Message(asked, node, "train.where") for node in nodes])
    Path(context.run_config["out"]).write_text(json.dumps([reply.content["at"]["node"] for reply in replies]))
""",
    "whereabouts_client.py": """
import time
import ray
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train("where")
def where(message, context):
    time.sleep(message.content["config"]["wait"])
    at = ConfigRecord({"node": ray.get_runtime_context().get_node_id()})
    return Message(RecordDict({"at": at}), reply_to=message)
""",
}


def test_sites_of_a_flower_run_work_at_both_nodes(cluster: str, tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    for name, text in APP.items():
        (tmp_path / "app" / name).write_text(text)
    out = tmp_path / "out.json"
    run_flower(
        tmp_path / "app",
        nodes=4,
        run_config={"out": str(out)},
        on_output=None,
        log_file=tmp_path / "log",
        ray=cluster,
    )
    worked = json.loads(out.read_text())
    assert len(worked) == 4
    assert len(set(worked)) == 2


@pytest.mark.parametrize("address", [NOBODY_LISTENS, "nowhere", "ray://127.0.0.1:9"])
def test_flower_is_not_started_without_a_cluster(tmp_path: Path, address: str) -> None:
    log = tmp_path / "log"
    with pytest.raises(RunError, match=f"cannot use a Ray cluster at '{address}'.*HOST:PORT"):
        run_flower(tmp_path, nodes=1, run_config={}, on_output=None, log_file=log, ray=address)
    assert not log.exists()
