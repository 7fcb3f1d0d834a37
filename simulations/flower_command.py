"""`flwr` for this checkout: Flower's own command, with a local SuperLink that no other checkout shares.

Where the project is installed without a checkout, the folder that the command is called in takes its place.

`make install` links it in the place of `.venv/bin/flwr`. Flower keeps one local SuperLink a user, on one port; it
outlives the command, keeps the environment and the folder of its first start, and its workers import code from there.
"""

from __future__ import annotations

import os
import socket
import sys
import sysconfig
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from importlib.metadata import entry_points
from io import StringIO
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent
CHECKOUT = _ROOT if (_ROOT / "pyproject.toml").is_file() else Path.cwd()
HOME = CHECKOUT / ".flwr"
RESOURCES = "num-supernodes=5 client-resources-num-cpus=1"


def main() -> None:
    """Run Flower's command line with this checkout's settings; what the user's environment says comes first."""
    (HOME / "cwd").mkdir(parents=True, exist_ok=True)
    settings = {
        "DYNAMMO_CHECKOUT": str(CHECKOUT),
        "FLWR_HOME": str(HOME),
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": _port(),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    os.environ["PATH"] = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)])
    (flwr,) = entry_points(group="console_scripts", name="flwr")
    command = flwr.load()
    if sys.argv[1:2] == ["run"]:
        _start_superlink(command)
        if not any(argument.startswith("--federation-config") for argument in sys.argv):
            sys.argv += ["--federation-config", RESOURCES]
    sys.exit(command())


def _port() -> str:
    """A port that was free when this checkout first needed one."""
    file = HOME / "port"
    with suppress(FileNotFoundError):
        return file.read_text()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    file.write_text(port)
    return port


def _start_superlink(command: Callable[[], object]) -> None:
    """Let Flower start its SuperLink, unless it runs, from a folder without code."""
    arguments, folder = sys.argv[1:], Path.cwd()
    sys.argv[1:] = ["list"]
    os.chdir(HOME / "cwd")
    with suppress(SystemExit), redirect_stdout(StringIO()):
        command()
    os.chdir(folder)
    sys.argv[1:] = arguments
