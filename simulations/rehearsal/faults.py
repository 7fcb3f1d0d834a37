"""What goes wrong in a federation of hospitals, done on purpose to a real one on this machine, and what came of it."""

from __future__ import annotations

import json
import os
import resource
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from client.consent.settings import load_site
from client.state.run_folders import run_folder
from dynammo_core.memory.encryption import load_key
from dynammo_core.memory.store import MemoryStore
from dynammo_core.support.errors import ConfigError, DynammoError, MemoryStoreError, RunError
from dynammo_core.support.processes import process_tree
from server.consortium.launch import follow, launch
from server.run_directory.directory import EVENTS, Event
from server.run_directory.event_tail import EventTail
from simulations.rehearsal.deployment import Deployment

FROZEN_SECONDS = 15.0
CLOCK_SECONDS = 60.0


@dataclass(frozen=True)
class Scene:
    """Where a fault strikes: one site of a deployment, in the middle of a run."""

    deployment: Deployment
    site: str
    run: Path

    def processes(self, name: str) -> list[int]:
        """Return all processes of the site, or of the `server`."""
        return list(process_tree(self.deployment.process(name).pid))

    @property
    def memory(self) -> MemoryStore:
        """Return the site's replay memory."""
        return memory_store(self.deployment, self.site, self.run)


@dataclass(frozen=True)
class Fault:
    """Something that happens to a site or to the server in the middle of a stage.

    Attributes:
        strike: does it.
        heal: what the people there, or their service managers, do then.
        resume: whether the operator has to say `dynammo-server resume`.
        lasting: it is healed only when the run has ended of it.
    """

    strike: Callable[[Scene], None]
    heal: Callable[[Scene], None]
    resume: bool = False
    lasting: bool = False


def _kill_site(scene: Scene) -> None:
    scene.deployment.end(scene.site)


def _terminate_site(scene: Scene) -> None:
    process = scene.deployment.process(scene.site)
    process.terminate()
    process.wait(60)
    scene.deployment.end(scene.site)


def _start_site(scene: Scene) -> None:
    scene.deployment.start_site(scene.site)


def _restart_site(scene: Scene) -> None:
    scene.deployment.end(scene.site)
    scene.deployment.start_site(scene.site)


def _freeze_site(scene: Scene) -> None:
    """Freeze the site's processes, as a cut network would."""
    processes = scene.processes(scene.site)
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGSTOP)
    time.sleep(FROZEN_SECONDS)
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGCONT)


def _fill_disk(scene: Scene) -> None:
    """Limit the site's files to three quarters of its memory's size, as a full disk would."""
    _limit_files(scene, scene.memory.path.stat().st_size * 3 // 4)


def _free_disk(scene: Scene) -> None:
    _limit_files(scene, resource.RLIM_INFINITY)


def _limit_files(scene: Scene, most: int) -> None:
    for process in scene.processes(scene.site):
        with suppress(ProcessLookupError):
            _, hard = resource.prlimit(process, resource.RLIMIT_FSIZE)
            resource.prlimit(process, resource.RLIMIT_FSIZE, (most, hard))


def _flip_a_bit(scene: Scene) -> None:
    """Damage the memory in its middle."""
    path = scene.memory.path
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _restore_memory(scene: Scene) -> None:
    """Repair the memory, as from a backup, unless the site has meanwhile written a new one."""
    try:
        scene.memory.load()
    except MemoryStoreError:
        _flip_a_bit(scene)


def _advance_clock(scene: Scene) -> None:
    """Start the site again with its clock a day ahead of the server's."""
    libraries = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
    if not libraries:
        raise ConfigError(
            "giving one process a different clock needs libfaketime", remedy="Install it: apt-get install faketime"
        )
    scene.deployment.end(scene.site)
    ahead = {"LD_PRELOAD": str(libraries[0]), "FAKETIME": "+1d", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    scene.deployment.start_site(scene.site, ahead)
    limit = time.monotonic() + CLOCK_SECONDS
    while "its signatures are refused" not in scene.deployment.said(scene.site):
        if time.monotonic() > limit:
            raise RunError(f"{scene.site} got no message that its clock is wrong")
        time.sleep(1)


def _kill_server(scene: Scene) -> None:
    scene.deployment.end("server")


def _start_server(scene: Scene) -> None:
    scene.deployment.start_server()


def _kill_server_app(scene: Scene) -> None:
    for process in list(process_tree(scene.deployment.loaded()))[1:]:
        with suppress(OSError):
            os.kill(process, signal.SIGKILL)


def _nothing(scene: Scene) -> None:
    """Do nothing: it heals by itself."""


FAULTS: Mapping[str, Fault] = MappingProxyType(
    {
        "site killed": Fault(_kill_site, _start_site),
        "site stopped politely": Fault(_terminate_site, _start_site),
        "site cut off for a while": Fault(_freeze_site, _nothing),
        "site's clock a day ahead": Fault(_advance_clock, _restart_site),
        "site's disk full": Fault(_fill_disk, _free_disk, resume=True, lasting=True),
        "site's memory damaged": Fault(_flip_a_bit, _restore_memory, resume=True, lasting=True),
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
    fault = FAULTS[name]
    last = len(deployment.experiment.stream) - 1
    run = launch(deployment.server, config)
    scene = Scene(deployment, deployment.names[-1], run)
    tail = EventTail(run / EVENTS, from_end=False)
    struck = False

    def hear(event: Event) -> None:
        nonlocal struck
        listener(event)
        if not struck and event["event"] == "step_started" and (event["task"], event["stage"]) == (last, stage):
            struck = True
            time.sleep(1)  # the sites have the message
            fault.strike(scene)
            if not fault.lasting:
                fault.heal(scene)

    try:
        follow(deployment.server, run, tail, hear)
        failed = False
    except DynammoError:
        if not fault.resume or not struck:
            raise
        failed = True
    if fault.lasting:
        fault.heal(scene)
    if failed:
        launch(deployment.server, config, resume=run)
        follow(deployment.server, run, tail, hear)
    return run


def exemplars(deployment: Deployment, run: Path) -> dict[str, tuple[int, list[str]]]:
    """Return what each site keeps after a run: the task after which its memory was written, and its record ids."""
    memories = {site: memory_store(deployment, site, run).load() for site in deployment.names}
    return {site: (memory.task, list(memory.record_ids)) for site, memory in memories.items()}


def memory_store(deployment: Deployment, site: str, run: Path) -> MemoryStore:
    """Return the replay memory that a site keeps for a run."""
    name = json.loads((run / EVENTS).read_text(encoding="utf-8").splitlines()[0])["run"]
    settings = load_site(deployment.site_yaml(site))
    key = load_key(settings.memory.key) if settings.memory.key else None
    return MemoryStore(run_folder(settings.memory.folder, name), run=name, site=site, key=key)
