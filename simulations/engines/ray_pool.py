"""Runs of a comparison as Ray tasks, over the machines of a cluster that exists already.

The machines share no files: each has its own installation of this code and its own data. A run takes place in a
temporary folder of its node, and its directory comes back as bytes.
"""

from __future__ import annotations

import io
import json
import signal
import socket
import tempfile
import threading
import time
import warnings
import zipfile
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.queue import Queue

from dynammo_core.configuration.config import Config, resolve
from dynammo_core.experiment import code_hash
from dynammo_core.support.errors import CheckpointError, DynammoError, RunError
from server.run.run_directory import move_aside
from simulations.comparisons.compare import OnEvent, Outcome
from simulations.engines.engines import run_local
from simulations.engines.process_pool import Event, tells_progress
from simulations.engines.ray_address import require_listener

POLL_SECONDS = 0.5
STOP_SECONDS = 10.0
UNWIND_SECONDS = 3.0
RETRIES = 2
"""Times that a run is begun anew, at whatever node, after its node was lost."""


@dataclass(frozen=True)
class Reply:
    """What comes back from a node: which one it is, the code it runs, and the run directory or what stopped the run."""

    node: str
    code_hash: str
    error: str
    archive: bytes


def on_ray(
    configs: Sequence[Config[Any]], runs: Path, on_event: OnEvent, *, address: str
) -> Generator[Outcome, None, None]:
    """Run experiments as tasks of a Ray cluster, each on `compute.threads` cores and, where there are GPUs, on one.

    Args:
        configs: the experiments; `data.root` and paths of weights must hold at every node.
        runs: folder, on this machine, of their run directories.
        on_event: told every event of every run.
        address: of the cluster: `HOST:PORT` from one of its machines, `ray://HOST:10001` from elsewhere.

    Raises:
        RunError: there is no such cluster, no node has the cores, or a node runs other code than this machine.
    """
    with _connection(address):
        told: Any = Queue(actor_options={"num_cpus": 0})
        at_node = ray.remote(_run_at_node)
        running: dict[Any, str] = {}
        try:
            for config in configs:
                asked = at_node.options(max_retries=RETRIES, **_resources(config))
                running[asked.remote(config.canonical_json(), code_hash(), told)] = config.run_name
            while running:
                finished, _ = ray.wait(list(running), timeout=POLL_SECONDS)
                for run_name, event in told.get_nowait_batch(told.size()):
                    on_event(run_name, event)
                for task in finished:
                    yield _take_in(task, running.pop(task), runs)
        except RayTaskError:
            raise
        except RayError as error:
            raise RunError(f"the Ray cluster at {address} failed: {_first_line(error)}") from error
        finally:
            for task in reversed(running):  # those that wait first, or they would start where one is stopped
                ray.cancel(task)  # as Ctrl-C there, so that nodes remove their temporary folders
            if running:
                ray.wait(list(running), num_returns=len(running), timeout=STOP_SECONDS)
                time.sleep(UNWIND_SECONDS)  # Ray answers for a cancelled task before its process has cleaned up


def unpack(archive: bytes, directory: Path) -> None:
    """Put a run directory in its place, whole or not at all; what stands there is moved aside.

    Raises:
        CheckpointError: it cannot be written.
    """
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory.parent, prefix=f".{directory.name}.") as temporary:
            unpacked = Path(temporary) / "run"
            with zipfile.ZipFile(io.BytesIO(archive)) as file:
                file.extractall(unpacked)
            if directory.exists():
                move_aside(directory)
            unpacked.rename(directory)
    except OSError as error:
        raise CheckpointError(
            f"cannot write the run directory {directory}: {error.strerror or error}",
            remedy="Free disk space or permit writing there, then start the same command again",
        ) from error


def pack(directory: Path) -> bytes:
    """All files of a folder as a ZIP archive, uncompressed, since weights do not shrink."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for path in sorted(directory.rglob("*")):
            if path.is_file():
                archive.write(path, path.relative_to(directory))
    return buffer.getvalue()


@contextmanager
def _connection(address: str) -> Iterator[None]:
    """This process as a driver of the cluster."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        require_listener(address)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of GPUs for tasks that ask for none
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (RayError, ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise RunError(
            f"no Ray cluster can be used at {address!r}: {_first_line(error)}",
            accepted="HOST:PORT of the cluster, from one of its machines, or ray://HOST:10001",
            remedy="Ask `ray status --address ADDRESS`; Python and Ray must be of the same version everywhere",
        ) from error
    if in_main_thread:
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray has put its own there
    try:
        yield
    finally:
        ray.shutdown()


def _resources(config: Config[Any]) -> dict[str, Any]:
    """What a run asks of a node.

    Raises:
        RunError: no node has it.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    most = max((node.get("CPU", 0) for node in nodes), default=0)
    if most < config.compute.threads:
        raise RunError(
            f"a run takes compute.threads: {config.compute.threads} cores, and no node of the Ray cluster has as many",
            accepted=f"at most {most:g}",
        )
    gpu = config.compute.device != "cpu" and any(node.get("GPU", 0) >= 1 for node in nodes)
    return {"num_cpus": config.compute.threads, "num_gpus": int(gpu)}


def _run_at_node(config_json: str, expected_code: str, told: Any) -> Reply:
    """At a node: run an experiment in a temporary folder, and send its directory back."""
    node, own_code = _node_name(), code_hash()
    if own_code != expected_code:
        return Reply(node, own_code, "", b"")
    config = resolve(json.loads(config_json), "the comparison", {})

    def tell(event: Event) -> None:
        if tells_progress(event):
            with suppress(RayError):  # a display that is gone stops no run
                told.put((config.run_name, event))

    with tempfile.TemporaryDirectory(prefix="dynammo-") as folder:
        try:
            return Reply(node, own_code, "", pack(run_local(config, Path(folder), None, tell)))
        except DynammoError as error:
            return Reply(node, own_code, str(error), b"")


def _node_name() -> str:
    """The machine, and Ray's id of its node: one machine may be several nodes."""
    return f"{socket.gethostname()}/{ray.get_runtime_context().get_node_id()[:8]}"


def _take_in(task: Any, run_name: str, runs: Path) -> Outcome:
    """Unpack what a finished task sent.

    Raises:
        RunError: the node runs other code than this machine.
    """
    try:
        reply: Reply = ray.get(task)
    except RayTaskError as error:
        if "failed to import" not in str(error):
            raise  # a defect, which keeps its traceback
        remedy = "Install this version at every node, restart Ray there, and start the same command again"
        raise RunError("a node of the Ray cluster cannot import this code", remedy=remedy) from error
    except RayError as error:
        return Outcome(run_name, "", f"the run was lost with its node, or could not start there: {_first_line(error)}")
    if reply.code_hash != code_hash():
        raise RunError(
            f"the node {reply.node} runs other code ({reply.code_hash[:12]}) than this machine ({code_hash()[:12]})",
            accepted="the same client/, dynammo_core/ and server/ at every node",
            remedy="Install this version at the node, restart Ray there, and start the same command again",
        )
    if not reply.error:
        unpack(reply.archive, runs / run_name)
    return Outcome(run_name, reply.node, reply.error)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
