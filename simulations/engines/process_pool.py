"""Runs of a comparison in processes of this machine, in parallel over its cores and GPUs."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any

import torch

from dynammo_core.configuration.config import Config, resolve
from dynammo_core.experiment import code_hash
from dynammo_core.models.backbones import weights_sha256
from dynammo_core.support.errors import CheckpointError, DynammoError, RunError
from server.run.checkpoint import CheckpointStore, Identity
from simulations.comparisons.compare import OnEvent, Outcome
from simulations.engines.engines import run_local

POLL_SECONDS = 0.2
Event = Mapping[str, Any]
Told = tuple[str, Event]
events: SimpleQueue[Told] | None = None
"""In a worker: where it tells what its runs do."""


def in_processes(
    configs: Sequence[Config[Any]], runs: Path, on_event: OnEvent, *, workers: int | None = None
) -> Generator[Outcome, None, None]:
    """Run experiments in processes; one that was cut off goes on from its last checkpoint.

    Args:
        configs: the experiments.
        runs: folder of their run directories.
        on_event: told every event of every run.
        workers: runs at a time; by default one a GPU, or as many as the cores carry.

    Raises:
        RunError: a process was killed, which ends the others too.
    """
    gpus = torch.cuda.device_count() if any(config.compute.device == "auto" for config in configs) else 0
    threads = max(config.compute.threads for config in configs)
    count = min(workers or gpus or max(1, usable_cores() // threads), len(configs))
    context = multiprocessing.get_context("spawn")
    devices: SimpleQueue[int | None] = context.SimpleQueue()
    told: SimpleQueue[Told] = context.SimpleQueue()
    for slot in range(count):
        devices.put(device_of(slot, gpus))
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(count, context, _prepare, (devices, told))
    try:
        with _interrupts_held():
            running = {pool.submit(_run, config.canonical_json(), runs): config.run_name for config in configs}
        while running:
            finished, _ = wait(running, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)
            while not told.empty():
                on_event(*told.get())
            for future in finished:
                yield Outcome(running.pop(future), "", future.result())
    except BaseException as error:
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()
        if isinstance(error, BrokenProcessPool):
            what = "a process that worked at the comparison was killed, for want of memory in most cases"
            raise RunError(what, remedy="Start the same command again, with fewer --workers") from error
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def device_of(slot: int, gpus: int) -> int | None:
    """Index of the GPU of a worker, dealt round; None where there is no GPU."""
    return slot % gpus if gpus else None


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def tells_progress(event: Event) -> bool:
    """Whether an event says how far a run has come; the others are too many to send about."""
    return event["event"] in {"run_started", "step_started", "step_finished"}


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Hold SIGINT back: processes started meanwhile never see it, since their parent is the one to stop them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _prepare(devices: SimpleQueue[int | None], told: SimpleQueue[Told]) -> None:
    """Make a worker ready: its GPU, its way to tell, and its end when the parent ends in whatever way."""
    global events
    events = told
    if (device := devices.get()) is not None:
        torch.cuda.set_device(device)  # what "cuda" means here from now on; the configuration, and its hash, stay
    follow_parent()


def follow_parent() -> None:
    """End this process when the one that started it ends, in whatever way."""
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run(config_json: str, runs: Path) -> str:
    """In a worker: run an experiment; returns the text of the error that stopped it, or nothing."""
    config = resolve(json.loads(config_json), "the comparison", {})

    def tell(event: Event) -> None:
        if events is not None and tells_progress(event):
            events.put((config.run_name, event))

    try:
        run_local(config, runs, _to_go_on_with(config, runs), tell)
    except DynammoError as error:
        return str(error)
    return ""


def _to_go_on_with(config: Config[Any], runs: Path) -> Path | None:
    """The directory of this very run, cut off, if its last checkpoint is whole."""
    directory = runs / config.run_name
    identity = Identity(config.canonical_json(), code_hash(), weights_sha256(config.backbone))
    try:
        CheckpointStore(directory / "checkpoints", identity).load()
    except CheckpointError:
        return None
    return directory
