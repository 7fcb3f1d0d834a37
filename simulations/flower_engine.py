"""`flwr run` as a function: one run in a SuperLink of its own, which is gone when the function returns.

Nothing here depends on the working directory, on PATH, on Flower's settings in the user's home, or on other checkouts
and SuperLinks on the machine; nothing needs the network.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from types import FrameType

import tomli_w

from dynammo_core.errors import RunError

BIN = Path(sys.executable).parent
START_SECONDS = 60.0
STOP_SECONDS = 15.0
POLL_SECONDS = 0.2
PORT_ATTEMPTS = 3
# Unix sockets have paths of at most 107 bytes, and Ray adds some 65 to its folder.
LONGEST_TEMPORARY_FOLDER = 24
ENVIRONMENT: Mapping[str, str] = {
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",  # or each run downloads all dependencies anew
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # or Ray hides the GPUs from sites that reserve none
    "PYTHONUNBUFFERED": "1",  # or `flwr run` holds its output back
}
COLOURS = re.compile(r"\x1b\[[0-9;]*m")
FAILED_PREFIX = "Simulation failed with exception: "
RAISED = re.compile(r"^(?:\w+\.)*\w*(?:Error|Exception)\b(?:: .*)?$")


def run_flower(
    app_dir: Path,
    *,
    nodes: int,
    run_config: Mapping[str, bool | float | int | str],
    on_output: Callable[[str], None] | None,
    on_poll: Callable[[], None] | None = None,
    log_file: Path,
) -> None:
    """Run the Flower app in `app_dir` in Flower's simulation and return when it has completed.

    Args:
        app_dir: folder with the app's pyproject.toml; it is read, never written.
        nodes: number of simulated nodes, at least 1.
        run_config: overrides of keys that pyproject.toml declares; relative paths would be resolved in a temporary
            folder, so give absolute ones.
        on_output: receives each line of the run's log, without colours.
        on_poll: called about five times a second while the run goes on.
        log_file: receives the run's log and, after a failure, the SuperLink's.

    Raises:
        RunError: the run could not start, or did not complete.
    """
    log_file.parent.mkdir(parents=True, exist_ok=True)
    with _signals_as_exceptions(), _home() as home, log_file.open("w", encoding="utf-8") as log:
        environment = _environment(home)
        app = _staged(app_dir, home / "app")
        (home / "run_config.toml").write_text(tomli_w.dumps(dict(run_config)), encoding="utf-8")

        def relay(line: str) -> None:
            log.write(line + "\n")
            log.flush()
            if on_output is not None:
                on_output(line)

        with _superlink(home, environment):
            command = ["flwr", "run", str(app), "local", "--stream", "--federation-config", _resources(nodes)]
            if run_config:
                command += ["--run-config", str(home / "run_config.toml")]
            _follow(command, home, environment, relay, on_poll)
            failure = _failure(home, environment, log_file)
        if failure:
            log.write("\n--- SuperLink\n" + (home / "superlink.log").read_text(encoding="utf-8", errors="replace"))
            raise RunError(failure, remedy=f"The whole log is in {log_file}")


def _resources(nodes: int) -> str:
    """One CPU a node, and as many nodes at a time as there are CPUs: Ray, left alone, may count none (quota below 1)."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return f"num-supernodes={nodes} client-resources-num-cpus=1 init-args-num-cpus={max(1, min(nodes, cpus))}"


@contextmanager
def _home() -> Iterator[Path]:
    """A temporary folder for everything that Flower and Ray write."""
    temporary = Path(tempfile.gettempdir())
    short = temporary if len(str(temporary)) <= LONGEST_TEMPORARY_FOLDER else Path("/tmp")
    home = Path(tempfile.mkdtemp(prefix="dynammo-", dir=short)).resolve()
    try:
        (home / "cwd").mkdir()
        yield home
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _environment(home: Path) -> dict[str, str]:
    """The user's environment, without settings of other Flower or Ray installations."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("FLWR_", "RAY_"))}
    environment.update(ENVIRONMENT)
    environment["FLWR_HOME"] = environment["RAY_TMPDIR"] = str(home)
    environment["PATH"] = os.pathsep.join([str(BIN), environment.get("PATH", os.defpath)])
    for name in ("NO_PROXY", "no_proxy"):
        environment[name] = ",".join(filter(None, [environment.get(name), "127.0.0.1,localhost"]))
    return environment


def _staged(app_dir: Path, target: Path) -> Path:
    """A copy of what the app bundles: `flwr run` looks at every file below its folder, environments and data included."""
    pyproject = app_dir / "pyproject.toml"
    try:
        patterns = tomllib.loads(pyproject.read_text(encoding="utf-8"))["tool"]["flwr"]["app"].get("fab-include")
    except (OSError, KeyError, tomllib.TOMLDecodeError) as error:
        raise RunError(f"{pyproject} describes no Flower app: {error}") from error
    if patterns is None:
        return app_dir.resolve()
    for source in {pyproject, *(path for pattern in patterns for path in app_dir.glob(pattern))}:
        copy = target / source.relative_to(app_dir)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, copy)
    return target


@contextmanager
def _superlink(home: Path, environment: Mapping[str, str]) -> Iterator[None]:
    """A SuperLink on a free port, known to `flwr` as the connection `local`."""
    for attempt in range(1, PORT_ATTEMPTS + 1):
        port = _free_port()
        with (home / "superlink.log").open("wb") as log:
            process = subprocess.Popen(
                ["flower-superlink", "--insecure", "--simulation", "--host", "127.0.0.1", "--port", str(port)],
                executable=BIN / "flower-superlink",
                # Ray puts the working directory before everything else on its workers' path.
                cwd=home / "cwd",
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
        try:
            if _started(process, port):
                (home / "config.toml").write_text(
                    '[superlink]\ndefault = "local"\n\n'
                    f'[superlink.local]\naddress = "127.0.0.1:{port}"\ninsecure = true\n',
                    encoding="utf-8",
                )
                yield
                return
        finally:
            _stop(process)
        if attempt == PORT_ATTEMPTS:
            lines = (home / "superlink.log").read_text(encoding="utf-8", errors="replace").splitlines()
            raise RunError(f"Flower's SuperLink did not start: {' '.join(lines[-3:])}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _started(superlink: subprocess.Popen[bytes], port: int) -> bool:
    """Wait until the SuperLink answers; False when it ended instead, as it does when another took the port."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    limit = time.monotonic() + START_SECONDS
    while superlink.poll() is None and time.monotonic() < limit:
        with suppress(urllib.error.URLError, OSError), direct.open(f"http://127.0.0.1:{port}/health", timeout=1):
            return superlink.poll() is None
        time.sleep(0.05)
    return False


def _follow(
    command: list[str],
    home: Path,
    environment: Mapping[str, str],
    relay: Callable[[str], None],
    on_poll: Callable[[], None] | None,
) -> None:
    """Relay the lines of a command until it ends."""
    process = subprocess.Popen(
        command,
        executable=BIN / command[0],
        cwd=home / "cwd",
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    )
    lines: SimpleQueue[str | None] = SimpleQueue()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.put(COLOURS.sub("", line.rstrip("\n")))
        lines.put(None)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        polled = 0.0
        while True:
            if on_poll is not None and time.monotonic() - polled >= POLL_SECONDS:
                on_poll()
                polled = time.monotonic()
            try:
                line = lines.get(timeout=POLL_SECONDS)
            except Empty:
                continue
            if line is None:
                break
            relay(line)
    finally:
        _stop(process)
        reader.join()


def _failure(home: Path, environment: Mapping[str, str], log_file: Path) -> str:
    """Why the run did not complete, or nothing: `flwr run` itself ends with 0 even when the run failed."""
    answer = subprocess.run(
        ["flwr", "list", "local", "--format", "json"],
        executable=BIN / "flwr",
        cwd=home / "cwd",
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    log = log_file.read_text(encoding="utf-8", errors="replace").splitlines()
    try:
        runs = json.loads(answer.stdout)["runs"]
    except (ValueError, KeyError):
        return f"Flower's SuperLink stopped during the run: {answer.stderr.strip()}"
    if not runs:
        return "Flower refused the run: " + " ".join(line.strip("│╭╰─╮╯ ") for line in log[-8:] if "│" in line)
    status, details = runs[0]["status"], runs[0]["status-details"]
    if status == "finished:completed":
        return ""
    if details.startswith(FAILED_PREFIX) and "Ending simulation" not in details:
        return str(details.removeprefix(FAILED_PREFIX))
    raised = [line for line in log if RAISED.match(line)]
    return f"the run ended as {status} ({details}){': ' + raised[-1] if raised else ''}"


def _stop(process: subprocess.Popen[bytes] | subprocess.Popen[str]) -> None:
    """End a process that leads a session of its own, in the way it wants if it hurries."""
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _die_with_parent() -> None:
    """On Linux, end this process when its parent is killed: a run without its starter would write on for ever."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # 1: PR_SET_PDEATHSIG


@contextmanager
def _signals_as_exceptions() -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind the stack, as Ctrl-C does, so that what was started is stopped."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
