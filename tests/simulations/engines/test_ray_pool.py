"""Work over two real Ray nodes on this machine: who does it, what comes back, and what a node refuses."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster
from small_runs import Outcome, run_small, small_config

from dynammo_core.support.errors import RunError
from simulations.engines import ray_pool
from simulations.engines.flower_engine import run_flower
from simulations.engines.ray_pool import on_ray, pack, unpack

pytestmark = pytest.mark.slow
LOOPBACK = ("127.0.0.2", "127.0.0.3")  # 127.0.0.1 is to Ray another name of this machine's outer address
SETTINGS = {
    "USAGE_STATS_ENABLED": "0",
    "worker_niceness": "0",
    # A busy machine takes its time to start a node.
    "agent_register_timeout_ms": "240000",
    "raylet_start_wait_time_s": "240",
    "gcs_server_request_timeout_seconds": "240",
}
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


@dataclass
class Nodes:
    """A cluster of two nodes of one core each, and the folder in which their runs take place."""

    address: str
    workplace: Path


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    home = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # the paths of Ray's sockets must be short
    cluster = Cluster()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", str(home))
        for name, value in SETTINGS.items():
            patch.setenv(f"RAY_{name}", value)
        patch.setenv("TMPDIR", str(home / "work"))
        for folder in ("ray", "work"):
            (home / folder).mkdir()
        try:
            for host in LOOPBACK:
                cluster.add_node(
                    node_ip_address=host,
                    num_cpus=1,
                    num_gpus=0,
                    object_store_memory=100 * 2**20,
                    include_dashboard=False,
                    include_log_monitor=False,
                )
            yield Nodes(cluster.address, home / "work")
        finally:
            cluster.shutdown()
            shutil.rmtree(home, ignore_errors=True)


def test_both_nodes_work_and_their_runs_are_as_if_done_here(nodes: Nodes, tmp_path: Path) -> None:
    configs = [small_config("replay", {"seed": seed}) for seed in range(1, 5)]
    heard: list[tuple[str, str]] = []

    def hear(run_name: str, event: Any) -> None:
        heard.append((run_name, event["event"]))

    outcomes = list(on_ray(configs, tmp_path / "runs", hear, address=nodes.address))
    assert {outcome.run_name for outcome in outcomes} == {config.run_name for config in configs}
    assert [outcome.error for outcome in outcomes] == [""] * len(configs)
    assert len({outcome.node for outcome in outcomes}) == 2
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {config.run_name for config in configs}
    assert {run_name for run_name, event in heard if event == "step_finished"} == {c.run_name for c in configs}
    here = run_small(configs[0], tmp_path / "here").path
    assert Outcome.of(tmp_path / "runs" / configs[0].run_name) == Outcome.of(here)
    assert list(nodes.workplace.glob("dynammo-*")) == []


def test_sites_of_a_flower_run_work_at_both_nodes(nodes: Nodes, tmp_path: Path) -> None:
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
        ray=nodes.address,
    )
    worked = json.loads(out.read_text())
    assert len(worked) == 4
    assert len(set(worked)) == 2


def test_a_run_that_fails_says_why_and_the_others_go_on(nodes: Nodes, tmp_path: Path) -> None:
    lost = small_config("replay", {"data.dataset": "manifest", "data.root": "/nowhere"})
    good = small_config("replay")
    by_name = {
        outcome.run_name: outcome
        for outcome in on_ray([lost, good], tmp_path, lambda name, event: None, address=nodes.address)
    }
    assert "/nowhere" in by_name[lost.run_name].error
    assert by_name[good.run_name].error == ""
    assert [path.name for path in tmp_path.iterdir()] == [good.run_name]


def test_a_node_with_other_code_is_refused(nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_pool, "code_hash", lambda: "0" * 64)  # of this process; the nodes have the real one
    with pytest.raises(RunError, match=r"runs other code .* than this machine \(000000000000\)"):
        list(on_ray([small_config("replay")], tmp_path, lambda name, event: None, address=nodes.address))
    assert list(tmp_path.iterdir()) == []


def test_stopping_leaves_nothing_at_the_nodes(nodes: Nodes, tmp_path: Path) -> None:
    long = [small_config("replay", {"seed": seed, "method.train.rounds": 500}) for seed in (1, 2, 3)]
    short = small_config("replay")

    def stop(run_name: str, event: Any) -> None:
        if event["event"] == "step_finished" and run_name != short.run_name:
            assert list(nodes.workplace.glob("dynammo-*"))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), closing(on_ray(long, tmp_path, stop, address=nodes.address)) as outcomes:
        list(outcomes)
    assert list(nodes.workplace.glob("dynammo-*")) == []
    assert list(tmp_path.iterdir()) == []
    # The cores are free again.
    (outcome,) = on_ray([short], tmp_path, lambda name, event: None, address=nodes.address)
    assert outcome.error == ""


def test_more_cores_than_a_node_has_are_refused(nodes: Nodes, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"compute\.threads: 2.*at most 1"):
        list(on_ray([small_config("replay", {"compute.threads": 2})], tmp_path, print, address=nodes.address))


@pytest.mark.parametrize("address", [NOBODY_LISTENS, "nowhere"])
def test_an_address_without_a_cluster_is_refused(tmp_path: Path, address: str) -> None:
    with pytest.raises(RunError, match=f"no Ray cluster can be used at '{address}'.*HOST:PORT"):
        list(on_ray([small_config("replay")], tmp_path, print, address=address))


@pytest.mark.parametrize("address", [NOBODY_LISTENS, "nowhere", "ray://127.0.0.1:9"])
def test_flower_is_not_started_without_a_cluster(tmp_path: Path, address: str) -> None:
    log = tmp_path / "log"
    with pytest.raises(RunError, match=f"no Ray cluster can be used at '{address}'.*HOST:PORT"):
        run_flower(tmp_path, nodes=1, run_config={}, on_output=None, log_file=log, ray=address)
    assert not log.exists()


def test_a_run_directory_is_put_in_place_and_an_older_one_moved_aside(tmp_path: Path) -> None:
    (tmp_path / "made" / "sites").mkdir(parents=True)
    (tmp_path / "made" / "sites" / "memory").write_bytes(b"\x00private")
    archive = pack(tmp_path / "made")
    target = tmp_path / "runs" / "small-0"
    for _ in range(2):
        unpack(archive, target)
    assert sorted(path.name for path in target.parent.iterdir()) == ["small-0", "small-0.1"]
    assert (target / "sites" / "memory").read_bytes() == b"\x00private"
