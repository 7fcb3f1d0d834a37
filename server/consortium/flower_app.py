"""Prepare what Flower needs to start this app: environment, programs, and the bundle of files."""

from __future__ import annotations

import os
import shutil
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path

from dynammo_core.support.errors import RunError

APP_DIRECTORY = Path(__file__).resolve().parents[2]
BUNDLE = Path("server") / "bundle"
"""Folder in a wheel for what a checkout has at its root: `pyproject.toml`, which describes the app, and experiments."""
ENVIRONMENT: Mapping[str, str] = {
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",  # or each run downloads all dependencies anew
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
    "PYTHONUNBUFFERED": "1",  # or `flwr run` holds its output back
}


def flower_environment(home: Path) -> dict[str, str]:
    """Return the user's environment without settings of other Flower installations, with `home` for Flower's files."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FLWR_")}
    environment |= ENVIRONMENT
    environment["FLWR_HOME"] = str(home)
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", os.defpath)])
    for name in ("NO_PROXY", "no_proxy"):
        environment[name] = ",".join(filter(None, [environment.get(name), "127.0.0.1,localhost"]))
    return environment


def flower_program(name: str) -> list[str]:
    """Return how to start a command of this environment: Flower's own `flwr`, not one that a checkout put there."""
    if name == "flwr":
        return [sys.executable, "-m", "flwr.cli.app"]
    return [str(Path(sys.executable).with_name(name))]


def description_of(app_dir: Path) -> Path:
    """Return the folder with an app's `pyproject.toml` and other files that are not code: in a wheel, a bundle."""
    bundle = app_dir / BUNDLE
    return bundle if bundle.is_dir() else app_dir


def app_files(app_dir: Path) -> dict[str, Path]:
    """Return the files that an app bundles, by their names in the bundle.

    Raises:
        RunError: the folder is not a Flower app.
    """
    beside_code = description_of(app_dir)
    pyproject = beside_code / "pyproject.toml"
    files: dict[str, Path] = {}
    try:
        app = tomllib.loads(pyproject.read_text(encoding="utf-8"))["tool"]["flwr"]["app"]
        for pattern in ("pyproject.toml", *app["fab-include"]):
            folder = app_dir if pattern.endswith(".py") else beside_code
            files |= {file.relative_to(folder).as_posix(): file for file in folder.glob(pattern)}
    except (OSError, KeyError, tomllib.TOMLDecodeError) as error:
        raise RunError(f"{pyproject} does not describe a Flower app with a `fab-include`: {error!r}") from error
    return files


def staged_app(app_dir: Path, target: Path) -> Path:
    """Copy the files that the app bundles to `target` and return it: `flwr run` looks at all it finds, data included.

    Raises:
        RunError: the folder is not a Flower app.
    """
    for name, file in app_files(app_dir).items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target / name)
    return target


def installed_bundle() -> bytes:
    """Return a bundle of the app that is installed here, as Flower makes it: the same files give the same bytes.

    Raises:
        RunError: the installation is damaged.
    """
    from flwr.cli.build import build_fab_from_files  # and only here: most that is prepared here needs no Flower

    return build_fab_from_files(app_files(APP_DIRECTORY))[0]
