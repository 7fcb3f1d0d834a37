"""Finished runs that all tests share, also those of other processes and of later calls of pytest.

A run is found again by a hash of everything that it depends on, so that none outlives a change of the code.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import pickle
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch
from small_runs import SITES, FinishedRun, Wire, run_small, small_config

from simulations.engines.local_grid import LocalGrid

ROOT = Path(__file__).resolve().parents[1]
MESSAGES, WHOLE = "messages.pickle", "whole.json"
UNUSED_SECONDS = 24 * 60 * 60.0
"""A run that nobody asked for in this time makes room."""


class FinishedRuns:
    """The uninterrupted small run of each method, made once and kept in a folder; not to be changed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def of(self, method: str) -> FinishedRun:
        """Return the run of a method, which takes a second if it is not there yet."""
        config = small_config(method)
        key = hashlib.sha256((surroundings() + config.canonical_json()).encode()).hexdigest()
        kept = self.folder / f"{method}-{key[:20]}"
        with _alone(self.folder / f"{method}.lock"):
            if not _is_whole(kept):
                _remove_unused(self.folder, method)
                shutil.rmtree(kept, ignore_errors=True)
                kept.mkdir()
                wire = Wire()
                run = run_small(config, kept, grid=LocalGrid(wire, nodes=SITES, run_config={}))  # type: ignore[arg-type]
                (kept / MESSAGES).write_bytes(pickle.dumps(wire.handled))
                (kept / WHOLE).write_text(json.dumps({"run": run.path.name, "sha256": _digest(kept)}))
            os.utime(kept)
        run_name = json.loads((kept / WHOLE).read_text())["run"]
        return FinishedRun(config, kept / run_name, kept / MESSAGES)


@cache
def surroundings() -> str:
    """Return a hash of the code, the installed packages and the machine's arithmetic."""
    digest = hashlib.sha256(f"{sys.version}\0{torch.__config__.show()}".encode())
    for package in ("client", "dynammo_core", "server", "simulations"):
        for file in sorted((ROOT / package).rglob("*.py")):
            digest.update(f"{file}\0".encode() + file.read_bytes())
    for file in (Path(__file__), Path(__file__).with_name("small_runs.py")):
        digest.update(file.read_bytes())
    for place in sorted(set(sys.path)):
        for name in sorted(entry.name for entry in Path(place).glob("*.dist-info")):
            digest.update(f"{name}\0".encode())
    return digest.hexdigest()


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Let one process at a time make a run."""
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _is_whole(kept: Path) -> bool:
    """Tell whether a run was finished, and no test has changed it since."""
    try:
        return bool(json.loads((kept / WHOLE).read_text())["sha256"] == _digest(kept))
    except OSError:
        return False


def _digest(kept: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(kept.rglob("*")):
        if file.is_file() and file != kept / WHOLE:
            digest.update(f"{file.relative_to(kept)}\0".encode() + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def _remove_unused(folder: Path, method: str) -> None:
    for other in folder.glob(f"{method}-*"):
        if time.time() - other.stat().st_mtime > UNUSED_SECONDS:
            shutil.rmtree(other)
