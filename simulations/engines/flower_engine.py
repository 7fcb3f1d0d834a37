"""`flwr run` as a function: one run in a SuperLink of its own, which is gone when the function returns.

Nothing here depends on the working directory, on PATH, on Flower's settings in the user's home, or on other checkouts
and SuperLinks on the machine; nothing needs the network.
"""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import IO

import tomli_w

from dynammo_core.support.errors import RunError
from dynammo_core.support.processes import usable_cores
from server.consortium.flower_app import flower_environment, flower_program, staged_app

START_SECONDS = 60.0
POLL_SECONDS = 0.2
CONNECT_SECONDS = 10.0
PORT_ATTEMPTS = 3
# Unix sockets have paths of at most 107 bytes, of which `_home` adds 17 and Ray 68.
LONGEST_TEMPORARY_FOLDER = 22
ENVIRONMENT: Mapping[str, str] = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # or Ray hides the GPUs from sites that reserve none
}
# Flower's processes outlive each other and whoever started them. This one waits until its input closes, which happens
# however its parent ends, then kills the process groups that were written there and removes the folder.
WATCHDOG = """
import os, shutil, signal, sys, time
for group in sys.stdin.read().split():
    try:
        os.killpg(int(group), signal.SIGKILL)
    except ProcessLookupError:
        pass
for _ in range(50):
    shutil.rmtree(sys.argv[1], ignore_errors=True)
    if not os.path.exists(sys.argv[1]):
        break
    time.sleep(0.1)
"""
COLOURS = re.compile(r"\x1b\[[0-9;]*m")
RAISED = re.compile(r"(?:\w+\.)*\w*(?:Error|Exception)\b(?:: .*)?")
DETAILS_PREFIX = "Simulation failed with exception: "
Start = Callable[[list[str], "IO[str] | int", int], "subprocess.Popen[str]"]


def run_flower(
    app_dir: Path,
    *,
    nodes: int,
    run_config: Mapping[str, bool | float | int | str],
    on_output: Callable[[str], None] | None,
    on_poll: Callable[[], None] | None = None,
    log_file: Path,
    ray: str | None = None,
) -> None:
    """Run the Flower app in `app_dir` in Flower's simulation and return when it has completed.

    Whatever ends this function, a signal included, also ends every process that it started.

    Args:
        app_dir: folder with the app's pyproject.toml; it is read, never written.
        nodes: number of simulated nodes, at least 1.
        run_config: overrides of keys that pyproject.toml declares. Paths should be absolute: the app runs from a
            temporary copy, in a temporary working directory.
        on_output: receives each line of the run's log, without colours.
        on_poll: called with every line, and at least five times a second.
        log_file: receives the run's log and, after a failure, the SuperLink's.
        ray: `HOST:PORT` of a Ray cluster on whose nodes the sites work, from one of its machines. The files that
            `run_config` names must be there at all of them; none: the sites work on this machine.

    Raises:
        RunError: the run could not start, or did not complete.
    """
    if ray is not None:
        _check_address(ray)
    log_file.parent.mkdir(parents=True, exist_ok=True)
    with _home(ray) as (home, start), log_file.open("w", encoding="utf-8") as log:

        def relay(line: str) -> None:
            print(line, file=log, flush=True)
            if on_output is not None:
                on_output(line)

        (home / "run_config.toml").write_text(tomli_w.dumps(dict(run_config)), encoding="utf-8")
        command = ["flwr", "run", str(staged_app(app_dir, home / "app")), "local", "--stream"]
        command += ["--federation-config", _resources(nodes, ray), "--run-config", str(home / "run_config.toml")]
        try:
            services = _start_superlink(home, start)
            for line in _lines(start(command, subprocess.PIPE, subprocess.STDOUT)):
                if line is not None:
                    relay(line)
                if on_poll is not None:
                    on_poll()
                if any(service.poll() is not None for service in services):
                    raise RunError("Flower's SuperLink or SuperExec ended during the run")
            _check_completed(start, _text(log_file).splitlines())
        except RunError as error:
            log.write("\n--- SuperLink\n" + _text(home / "superlink.log"))
            raise RunError(str(error), remedy=f"Read the whole log in {log_file}") from None


def _check_address(ray: str) -> None:
    try:
        if ray.startswith("ray://"):
            raise ValueError("Flower can join a cluster only from one of its machines; run this command there")
        require_listener(ray)
    except (ValueError, OSError) as error:
        raise RunError(f"cannot use a Ray cluster at {ray!r}: {error}", accepted="HOST:PORT") from error


def _resources(nodes: int, ray: str | None) -> str:
    """A CPU for each node that works, as far as they go: Ray, left to count, may find none (a quota below one)."""
    if ray is not None:  # a cluster has counted its own, and refuses a number from outside
        return f"num-supernodes={nodes} client-resources-num-cpus=1"
    return f"num-supernodes={nodes} client-resources-num-cpus=1 init-args-num-cpus={max(1, min(nodes, usable_cores()))}"


@contextmanager
def _home(ray: str | None) -> Iterator[tuple[Path, Start]]:
    """A temporary folder for all that Flower and Ray write, and a function that starts processes in it."""
    temporary = Path(tempfile.gettempdir())
    short = temporary if len(str(temporary)) <= LONGEST_TEMPORARY_FOLDER else Path("/tmp")
    home = Path(tempfile.mkdtemp(prefix="dynammo-", dir=short))
    (home / "cwd").mkdir()
    environment = _environment(home, ray)
    command = [sys.executable, "-I", "-c", WATCHDOG, str(home)]
    watchdog = subprocess.Popen(command, stdin=subprocess.PIPE, text=True, start_new_session=True)
    assert watchdog.stdin is not None
    lifeline = watchdog.stdin
    processes: list[subprocess.Popen[str]] = []

    def start(command: list[str], stdout: IO[str] | int, stderr: int) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [*flower_program(command[0]), *command[1:]],
            # Ray's workers look for code here before anywhere else, so it is empty.
            cwd=home / "cwd",
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
        print(process.pid, file=lifeline, flush=True)
        processes.append(process)
        return process

    try:
        yield home, start
    finally:
        lifeline.close()
        for process in (watchdog, *processes):
            process.wait()


def _environment(home: Path, ray: str | None) -> dict[str, str]:
    """Flower's, and Ray without settings of other installations.

    Flower hands Ray no address (`flwr/simulation/app.py`, `_run_simulation_settings`); Ray takes it from here.
    """
    environment = {name: value for name, value in flower_environment(home).items() if not name.startswith("RAY_")}
    address = {} if ray is None else {"RAY_ADDRESS": ray}
    return {**environment, **ENVIRONMENT, "RAY_TMPDIR": str(home), **address}


def _start_superlink(home: Path, start: Start) -> list[subprocess.Popen[str]]:
    """Start a SuperLink on a free port, with its SuperExec, and declare it to `flwr` as the connection `local`."""
    for _ in range(PORT_ATTEMPTS):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        api = f"127.0.0.1:{port}"
        with (home / "superlink.log").open("w") as log:
            # SuperExec is started here, not by the SuperLink, which would let it leave the watchdog's reach.
            command = ["flower-superlink", "--insecure", "--simulation", "--isolation", "process", "--port", str(port)]
            superlink = start(command, log, subprocess.STDOUT)
            if not _answers(superlink, f"http://{api}/health"):
                continue
            command = ["flower-superexec", "--insecure", "--runtime-api-address", api]
            superexec = start(command, log, subprocess.STDOUT)
        connections = {"default": "local", "local": {"address": api, "insecure": True}}
        (home / "config.toml").write_text(tomli_w.dumps({"superlink": connections}))
        return [superlink, superexec]
    raise RunError(f"Flower's SuperLink did not start: {_text(home / 'superlink.log')[-500:]}")


def _answers(superlink: subprocess.Popen[str], url: str) -> bool:
    """Wait until the SuperLink is ready; False when it ended instead, as when another program was given its port."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    limit = time.monotonic() + START_SECONDS
    while superlink.poll() is None and time.monotonic() < limit:
        with suppress(OSError), direct.open(url, timeout=1):
            return superlink.poll() is None
        time.sleep(0.05)
    return False


def _lines(process: subprocess.Popen[str]) -> Iterator[str | None]:
    """The lines of a process until it ends, and None whenever there was none for a while."""
    lines: SimpleQueue[str | None] = SimpleQueue()

    def read() -> None:
        for line in process.stdout or ():
            lines.put(COLOURS.sub("", line.rstrip("\n")))
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    while True:
        try:
            line = lines.get(timeout=POLL_SECONDS)
        except Empty:
            yield None
        else:
            if line is None:
                return
            yield line


def _check_completed(start: Start, log: list[str]) -> None:
    """Raise unless the run has completed: `flwr run` ends with 0 even when the run failed."""
    command = ["flwr", "list", "local", "--format", "json"]
    answer, _ = start(command, subprocess.PIPE, subprocess.DEVNULL).communicate()
    runs = json.loads(answer or "{}").get("runs")
    if not runs:
        boxed = [line.strip("│ ") for line in log if line.startswith("│")]
        raise RunError(f"Flower refused the run: {' '.join(boxed or log[-3:])}")
    status, details = runs[0]["status"], runs[0]["status-details"]
    if status == "finished:completed":
        return
    if details.startswith(DETAILS_PREFIX) and "Ending simulation" not in details:
        raise RunError(details.removeprefix(DETAILS_PREFIX))
    raised = [line for line in log if RAISED.fullmatch(line) and "imulation" not in line]  # not Flower's own
    raise RunError(f"the run ended as {status} ({'; '.join([details, *raised[-1:]])})")


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def require_listener(address: str) -> None:
    """Find out in seconds that nobody listens at an address; Ray itself would ask for minutes.

    Raises:
        ValueError: it is not HOST:PORT, with or without ray:// before it.
        OSError: nobody listens there.
    """
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if not separator or not port.isdigit():
        raise ValueError("the address is not HOST:PORT")
    socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
