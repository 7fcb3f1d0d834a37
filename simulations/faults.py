"""What goes wrong in a federation of hospitals, done on purpose to a real one on this machine, and what came of it."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from client.settings import load_site
from dynammo_core.errors import DynammoError
from dynammo_core.memory.encryption import load_key
from dynammo_core.memory.store import MemoryStore
from dynammo_core.processes import process_tree
from server.event_tail import EventTail
from server.launch import follow, launch
from server.run_directory import EVENTS, Event
from simulations.deployment import Deployment

FROZEN_SECONDS = 15.0


@dataclass(frozen=True)
class Fault:
    """Something that happens to a site or to the server in the middle of a stage.

    Attributes:
        strike: does it, to the site that it is given.
        heal: what the people there, or their service managers, do then.
        resume: whether the operator has to say `dynammo-server resume`.
    """

    strike: Callable[[Deployment, str], None]
    heal: Callable[[Deployment, str], None]
    resume: bool = False


def _kill_site(deployment: Deployment, site: str) -> None:
    deployment.end(site)


def _terminate_site(deployment: Deployment, site: str) -> None:
    deployment.process(site).terminate()
    deployment.process(site).wait(60)
    deployment.end(site)


def _start_site(deployment: Deployment, site: str) -> None:
    deployment.start_site(site)


def _freeze_site(deployment: Deployment, site: str) -> None:
    """As a network that is cut: nothing of the site moves."""
    processes = list(process_tree(deployment.process(site).pid))
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGSTOP)
    time.sleep(FROZEN_SECONDS)
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGCONT)


def _kill_server(deployment: Deployment, site: str) -> None:
    deployment.end("server")


def _start_server(deployment: Deployment, site: str) -> None:
    deployment.start_server()


def _kill_server_app(deployment: Deployment, site: str) -> None:
    for process in process_tree(deployment.process("server").pid):
        with suppress(OSError):
            if b"flwr-serverapp" in Path(f"/proc/{process}/cmdline").read_bytes():
                os.kill(process, signal.SIGKILL)


def _nothing(deployment: Deployment, site: str) -> None:
    """It heals by itself, or there is nothing to do."""


FAULTS: Mapping[str, Fault] = MappingProxyType(
    {
        "site killed": Fault(_kill_site, _start_site),
        "site stopped politely": Fault(_terminate_site, _start_site),
        "site cut off for a while": Fault(_freeze_site, _nothing),
        "SuperLink killed": Fault(_kill_server, _start_server, resume=True),
        "ServerApp killed": Fault(_kill_server_app, _nothing, resume=True),
    }
)


def run_with_fault(
    deployment: Deployment, config: Any, name: str, stage: str, listener: Callable[[Event], None]
) -> Path:
    """Run an experiment, let one fault strike in the first round of a stage of the last task, and see it through.

    Raises:
        DynammoError: the run did not survive.
    """
    fault, site = FAULTS[name], deployment.names[-1]
    last = len(deployment.experiment.stream) - 1
    run = launch(deployment.server, config)
    tail = EventTail(run / EVENTS, from_end=False)
    struck = False

    def hear(event: Event) -> None:
        nonlocal struck
        listener(event)
        if not struck and event["event"] == "step_started" and (event["task"], event["stage"]) == (last, stage):
            struck = True
            time.sleep(1)  # the sites have the message
            fault.strike(deployment, site)
            fault.heal(deployment, site)

    try:
        follow(deployment.server, run, tail, hear)
    except DynammoError:
        if not fault.resume or not struck:
            raise
        launch(deployment.server, config, resume=run)
        follow(deployment.server, run, tail, hear)
    return run


def exemplars(deployment: Deployment, run: Path) -> dict[str, tuple[int, list[str]]]:
    """What each site keeps after a run: the task that its memory stands after, and its record ids."""
    name = json.loads((run / EVENTS).read_text(encoding="utf-8").splitlines()[0])["run"]
    kept = {}
    for site in deployment.names:
        settings = load_site(deployment.site_yaml(site))
        key = load_key(settings.memory.key) if settings.memory.key else None
        memory = MemoryStore(settings.memory.folder / name, run=name, site=site, key=key).load()
        kept[site] = (memory.task, list(memory.record_ids))
    return kept
