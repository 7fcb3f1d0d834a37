"""Flower's SuperNode at a site, and a process of this project for each message that it receives.

The SuperNode hands its tasks to whoever knows a secret, which is made anew for each start and never leaves this
process; the token of a task goes to the process that answers it by a pipe. So no other account of this machine can
take a task, read a message or answer one, though all of them can reach the port. Whatever kind of task a server asks
for, an agent's too, the same process answers it (`client/own_app.py`). Nothing here reads the app of a run.
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
from importlib import import_module
from typing import Any

from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor, SuperExecAuthHttpInterceptor
from flwr.supercore.retry import make_simple_http_retry_invoker
from flwr.supercore.runtime import RuntimeHttpClient

from client.own_app import replace
from client.own_code import start_command

POLL_SECONDS = 0.25
ACQUIRE = "/flwr.proto.Runtime/AcquireTask"


def start_processes(address: str, secret: bytes) -> None:
    """Start a process for each task of the SuperNode at `address`, as long as this one lives.

    When it fails, this whole process ends: a SuperNode whose messages nobody answers had better be started again.
    """
    try:
        _start_processes(address, secret)
    except Exception:
        logging.getLogger("flwr").exception("no more tasks are started")
        os.kill(os.getpid(), signal.SIGTERM)


def _start_processes(address: str, secret: bytes) -> None:
    signed = SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods={ACQUIRE})
    client = RuntimeHttpClient.from_server_address(
        server_address=address,
        insecure=True,
        root_certificates=None,
        interceptors=[RuntimeVersionHttpInterceptor(component_name="SuperExec"), signed],
        retry_invoker=make_simple_http_retry_invoker(),
    )
    anything = AcquireTaskRequest(supported_task_types=list(TaskType))
    command = start_command("client.own_app", address, str(os.getpid()))
    running: list[subprocess.Popen[str]] = []
    while True:
        token = client.AcquireTask(anything).token
        if token:
            process = subprocess.Popen(command, stdin=subprocess.PIPE, text=True)
            assert process.stdin is not None
            with process.stdin as pipe:
                pipe.write(f"{token}\n")
            running.append(process)
        running = [process for process in running if process.poll() is None]
        time.sleep(POLL_SECONDS)


def main() -> None:
    """Run `flower-supernode`, with its own arguments, as a site does."""
    secret = secrets.token_bytes(32)
    shell = import_module("flwr.supernode.cli.flower_supernode")
    loop = import_module("flwr.supernode.start_client_internal")
    read, run = shell._parse_supernode_lifespan_config, shell.start_client_internal

    def with_secret() -> Any:
        config = read()
        config.superexec_auth_secret = secret
        return config

    def with_processes(**settings: Any) -> None:
        if (settings["superexec_auth_secret"], settings["isolation"]) != (secret, "process"):
            raise RuntimeError("this version of Flower does not keep its tasks for who knows the secret")
        threading.Thread(target=start_processes, args=(settings["runtime_api_address"], secret), daemon=True).start()
        run(**settings)

    replace(shell, "_parse_supernode_lifespan_config", with_secret)
    replace(shell, "start_client_internal", with_processes)
    replace(loop, "get_fused_config_from_fab", lambda *_: {})  # or it would unpack a description of any size
    shell.flower_supernode()


if __name__ == "__main__":
    main()
