"""What every way of starting this app under Flower shares: environment, programs, and the bundle of its files."""

from __future__ import annotations

import os
import shutil
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path

from dynammo_core.support.errors import RunError

APP_DIRECTORY = Path(__file__).resolve().parents[2]
ENVIRONMENT: Mapping[str, str] = {
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",  # or each run downloads all dependencies anew
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
    "PYTHONUNBUFFERED": "1",  # or `flwr run` holds its output back
}


def flower_environment(home: Path) -> dict[str, str]:
    """The user's environment, without settings of other Flower installations, and with `home` for Flower's files."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FLWR_")}
    environment |= ENVIRONMENT
    environment["FLWR_HOME"] = str(home)
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", os.defpath)])
    for name in ("NO_PROXY", "no_proxy"):
        environment[name] = ",".join(filter(None, [environment.get(name), "127.0.0.1,localhost"]))
    return environment


def flower_program(name: str) -> list[str]:
    """A command of this environment; Flower's own `flwr`, not one that a checkout put in its place."""
    if name == "flwr":
        return [sys.executable, "-m", "flwr.cli.app"]
    return [str(Path(sys.executable).with_name(name))]


def staged_app(app_dir: Path, target: Path) -> Path:
    """A copy of the files that the app bundles: `flwr run` looks at all it finds, environments and data included.

    Raises:
        RunError: the folder holds no Flower app.
    """
    pyproject = app_dir / "pyproject.toml"
    try:
        app = tomllib.loads(pyproject.read_text(encoding="utf-8"))["tool"]["flwr"]["app"]
        files = {pyproject, *(path for pattern in app["fab-include"] for path in app_dir.glob(pattern))}
        for file in files:
            copy = target / file.relative_to(app_dir)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
    except (OSError, KeyError, tomllib.TOMLDecodeError) as error:
        raise RunError(f"{pyproject} describes no Flower app with a `fab-include`: {error!r}") from error
    return target
