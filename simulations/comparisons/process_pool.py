"""Runs of a comparison on this machine: in processes over its cores and GPUs, or one by one in this process."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any

import torch

from dynammo_core.configuration.config import Config, resolve
from dynammo_core.support.errors import CheckpointError, ConfigError, DynammoError, RunError
from dynammo_core.support.processes import usable_cores
from server.run.run import run_and_report
from server.run_directory.checkpoint import CheckpointStore, identity_of
from simulations.comparisons.compare import Cell, OnEvent, Wire
from simulations.comparisons.wires import grid_of

POLL_SECONDS = 0.2
Event = Mapping[str, Any]
RunEvent = tuple[str, Event]
events: SimpleQueue[RunEvent] | None = None
"""In a worker: where it tells what its runs do."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended; `error` is the text of what stopped it, empty if it completed."""

    run_name: str
    error: str


Pool = Callable[[Sequence[Cell], Path, OnEvent], Generator[Outcome, None, None]]
"""Runs all the experiments, leaves their run directories in the folder, and yields each outcome as it is known.

Closing the generator, or an exception that passes through it, stops every run in hand.
"""


def in_processes(
    cells: Sequence[Cell], runs: Path, on_event: OnEvent, *, workers: int | None = None
) -> Generator[Outcome, None, None]:
    """Run experiments in processes; one that was cut off goes on from its last checkpoint.

    Args:
        cells: the runs.
        runs: folder of their run directories.
        on_event: receives every event of every run.
        workers: runs at a time; by default one a GPU, or as many as the cores carry.

    Raises:
        RunError: a process was killed, which ends the others too.
    """
    if not cells:
        return
    gpus = torch.cuda.device_count() if any(cell.config.compute.device == "auto" for cell in cells) else 0
    threads = max(cell.config.compute.threads for cell in cells)
    count = min(workers or gpus or max(1, usable_cores() // threads), len(cells))
    context = multiprocessing.get_context("spawn")
    devices: SimpleQueue[int | None] = context.SimpleQueue()
    event_queue: SimpleQueue[RunEvent] = context.SimpleQueue()
    for slot in range(count):
        devices.put(device_of(slot, gpus))
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(count, context, _prepare, (devices, event_queue))
    try:
        with _interrupts_held():
            running = {
                pool.submit(_work, cell.run_name, cell.config.canonical_json(), cell.wire, runs): cell.run_name
                for cell in cells
            }
        while running:
            finished, _ = wait(running, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)
            while not event_queue.empty():
                on_event(*event_queue.get())
            for future in finished:
                yield Outcome(running.pop(future), future.result())
    except BaseException as error:
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()
        if isinstance(error, BrokenProcessPool):
            what = "a process of the comparison was killed, most likely because memory ran out"
            raise RunError(what, remedy="Repeat the same command with fewer --workers") from error
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def one_by_one(cells: Sequence[Cell], runs: Path, on_event: OnEvent) -> Generator[Outcome, None, None]:
    """Run experiments in this process, one after the other, as `in_processes` does beside each other."""
    for cell in cells:
        yield Outcome(cell.run_name, _run(cell.config, cell.wire, runs, partial(on_event, cell.run_name)))


def device_of(slot: int, gpus: int) -> int | None:
    """Return the index of a worker's GPU, dealt round; None if there is no GPU."""
    return slot % gpus if gpus else None


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


def _prepare(devices: SimpleQueue[int | None], event_queue: SimpleQueue[RunEvent]) -> None:
    """Make a worker ready: its GPU, its way to tell, and its end when the parent ends in whatever way."""
    global events
    events = event_queue
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


def _work(run_name: str, config_json: str, wire: Wire, runs: Path) -> str:
    """Run an experiment in a worker; return the text of the error that stopped it, or nothing."""

    def tell(event: Event) -> None:
        if events is not None:
            events.put((run_name, event))

    return _run(resolve(json.loads(config_json), "the comparison", {}), wire, runs, tell)


def _run(config: Config[Any], wire: Wire, runs: Path, tell: Callable[[Event], None]) -> str:
    """Run an experiment over its wire, or go on with it; return the text of the error that stopped it, or nothing."""

    def listener(event: Event) -> None:
        if tells_progress(event):
            tell(event)

    folder = runs / wire.folder
    resume = _to_go_on_with(config, folder / config.run_name)
    try:
        run_and_report(grid_of(wire, config), config, runs=folder, resume=resume, listeners=[listener])
    except DynammoError as error:
        return str(error)
    return ""


def _to_go_on_with(config: Config[Any], directory: Path) -> Path | None:
    """Return the directory of this very run, cut off, if its last checkpoint is whole."""
    identity = identity_of(config)
    try:
        CheckpointStore(directory / "checkpoints", identity).load()
    except CheckpointError:
        return None
    return directory


def part_of(cells: Sequence[Cell], shard: str) -> list[Cell]:
    """Return every n-th run, from the k-th on, for the shard "k/n": processes that share a folder take a part each.

    A run belongs to one part, whatever has finished: the parts depend on nothing but the files and their order.

    Raises:
        ConfigError: the shard is not k/n with 1 <= k <= n.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", shard)
    number, count = map(int, match.groups()) if match else (0, 0)
    if not 1 <= number <= count:
        raise ConfigError(
            f"--shard {shard!r} does not name a part of the runs", accepted="K/N with K from 1 to N, such as 2/8"
        )
    return list({cell.run_name: cell for cell in cells}.values())[number - 1 :: count]
