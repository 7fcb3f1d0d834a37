"""Start, copy, wait for and count processes: children that end with whoever started them, however it ends."""

from __future__ import annotations

import gc
import os
import pwd
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from select import select
from typing import IO

NETWORKS = ("torchvision.models", "timm")
"""What some networks are built with."""

# Some programs outlive whoever started them. This one waits until its input closes, which happens however its parent
# ends, then kills the process group that was written there.
WATCHDOG = """
import os, signal, sys
for group in sys.stdin.read().split():
    try:
        os.killpg(int(group), signal.SIGKILL)
    except OSError:
        pass
"""


def account() -> str:
    """Return the name of the account that this process runs under, whatever its environment says."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # as in a container whose account has no entry
        return f"account {os.getuid()}"


@contextmanager
def process_group(
    command: list[str], *, cwd: Path, environment: Mapping[str, str], output: IO[str] | int = subprocess.PIPE
) -> Iterator[subprocess.Popen[str]]:
    """Start a process in a group of its own and end that whole group afterwards, even if this process is killed.

    Args:
        command: the program and its arguments.
        cwd: its working directory.
        environment: its environment.
        output: receives what it prints, errors included; by default a pipe to be read.
    """
    watchdog = subprocess.Popen(
        [sys.executable, "-I", "-c", WATCHDOG], stdin=subprocess.PIPE, text=True, start_new_session=True
    )
    assert watchdog.stdin is not None
    child = None
    try:
        child = subprocess.Popen(
            command,
            cwd=cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
            umask=0o077,
        )
        print(child.pid, file=watchdog.stdin, flush=True)
        yield child
    finally:
        watchdog.stdin.close()
        watchdog.wait()
        if child is not None:
            child.wait()


def answer_by_copies(answer: Callable[[str], None]) -> None:
    """Fork for each line of standard input, and have the copy answer it and end; return when the input ends.

    The process must have a single thread, since a copy has no other. A copy starts with all that is loaded here,
    `NETWORKS` too unless a first line waits already, which may do without, and changes nothing for the next one.
    """
    for module in NETWORKS:
        if not select([sys.stdin], [], [], 0)[0]:
            import_module(module)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # so that a copy which has ended leaves nothing
    gc.freeze()  # or a copy's collector would write to, and so copy, all that is loaded
    for line in sys.stdin:
        if os.fork():
            continue
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        try:
            with suppress(SystemExit):
                answer(line.strip())
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)  # without taking PyTorch down piece by piece, which costs more than many an answer


def pauses(first: float, longest: float) -> Iterator[float]:
    """Yield seconds to wait between looks, each a fifth more than the ones before, from `first` to `longest`.

    So an event is noticed within a fifth of the time that it took, and a long wait costs few looks.
    """
    pause = first
    while True:
        yield pause
        pause = min(1.2 * pause, longest)


def is_alive(process: int) -> bool:
    """Return whether a process runs; one that has ended does not, though whoever started it has not asked yet."""
    try:
        os.kill(process, 0)
    except OSError as error:
        return isinstance(error, PermissionError)
    with suppress(OSError):  # where there is no such file, nothing better is known
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return True


def process_tree(process: int) -> Iterator[int]:
    """Yield a process and all its descendants."""
    parents = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parents[int(status.parent.name)] = int(status.read_text().rpartition(")")[2].split()[1])
    found = [process]
    for parent in found:
        found += [child for child, of in parents.items() if of == parent]
    yield from found


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
