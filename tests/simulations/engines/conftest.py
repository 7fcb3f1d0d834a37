"""One Ray cluster for all tests that let Flower work on one: its own takes Flower ten seconds to start."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

LOOPBACK = ("127.0.0.2", "127.0.0.3")  # 127.0.0.1 is to Ray another name of this machine's outer address
SETTINGS = {
    "USAGE_STATS_ENABLED": "0",
    "worker_niceness": "0",
    # A busy machine takes its time to start a node.
    "agent_register_timeout_ms": "240000",
    "raylet_start_wait_time_s": "240",
    "gcs_server_request_timeout_seconds": "240",
}


@pytest.fixture(scope="session")
def cluster() -> Iterator[str]:
    """Start a cluster of two nodes of one core each; yield its address."""
    from ray.cluster_utils import Cluster  # seconds that each worker would pay when it collects the tests

    home = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # the paths of Ray's sockets must be short
    nodes = Cluster()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", str(home))
        for name, value in SETTINGS.items():
            patch.setenv(f"RAY_{name}", value)
        (home / "ray").mkdir()
        try:
            for host in LOOPBACK:
                nodes.add_node(
                    node_ip_address=host,
                    num_cpus=1,
                    num_gpus=0,
                    object_store_memory=100 * 2**20,
                    include_dashboard=False,
                    include_log_monitor=False,
                )
            yield nodes.address
        finally:
            nodes.shutdown()
            shutil.rmtree(home, ignore_errors=True)
