"""A lock has one holder at a time, names it, and falls when it ends, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dynammo_core.support.errors import CheckpointError, RunError
from dynammo_core.support.locks import only_holder

HOLD = """
import sys, time
from pathlib import Path
from dynammo_core.support.errors import RunError
from dynammo_core.support.locks import only_holder
with only_holder(Path(sys.argv[1]), RunError):
    print("held", flush=True)
    time.sleep(600)
"""


def holder(lock: Path) -> subprocess.Popen[str]:
    """A process that holds a lock from now on."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(lock)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_the_refusal_says_who_holds_it_and_since_when(tmp_path: Path) -> None:
    lock = tmp_path / "folder" / "lock"
    with only_holder(lock, RunError):
        before = lock.read_bytes()
        with (
            pytest.raises(RunError, match=rf"^process {os.getpid()} on \S+ since {time.strftime('%Y')}-\d\d-\d\d "),
            only_holder(lock, RunError),
        ):
            raise AssertionError("held twice")
        assert lock.read_bytes() == before
    assert list(lock.parent.iterdir()) == []


def test_it_falls_with_a_process_that_is_killed(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    process = holder(lock)
    with pytest.raises(RunError, match=f"process {process.pid} on"), only_holder(lock, RunError):
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert lock.exists()  # what a killed process leaves behind stops nobody
    with only_holder(lock, RunError):
        assert lock.read_text().startswith(f"process {os.getpid()} on ")
    assert not lock.exists()


def test_of_many_that_ask_at_once_never_two_hold_it(tmp_path: Path) -> None:
    """Each holder notes that it came and that it went, so that two at a time would stand in the notes."""
    program = """
import sys
from pathlib import Path
from dynammo_core.support.errors import RunError
from dynammo_core.support.locks import only_holder
folder, held = Path(sys.argv[1]), 0
while held < 200:
    try:
        with only_holder(folder / "lock", RunError), (folder / "notes").open("a") as notes:
            print("in", file=notes, flush=True)
            print("out", file=notes, flush=True)
            held += 1
    except RunError:
        pass
"""
    processes = [subprocess.Popen([sys.executable, "-c", program, str(tmp_path)]) for _ in range(3)]
    assert [process.wait(120) for process in processes] == [0, 0, 0]
    assert (tmp_path / "notes").read_text().split() == ["in", "out"] * 600


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    lock = tmp_path / "file" / "lock"
    with pytest.raises(CheckpointError, match=f"cannot write {lock}"), only_holder(lock, RunError):
        pass
