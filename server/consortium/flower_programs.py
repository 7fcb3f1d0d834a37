"""Flower's programs on the server, as operators: each shows the operator's token, and none executes foreign code.

Flower's command line, SuperExec and ServerApp call the SuperLink by a client that knows of no token, so each is started
through this module, which adds it. `dynammo-server start` puts scripts of Flower's names first on the path of its
SuperLink for that. A ServerApp is always the one that is installed here: what a run brings is compared with it,
never unpacked and never imported. Programs of other kinds of apps, which Flower would start as well, end with an error.
"""

from __future__ import annotations

import os
import shlex
import sys
import tempfile
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from flwr.cli.build import build_fab_from_disk
from flwr.server.run_serverapp import run
from flwr.supercore.constant import TASK_TYPE_TO_COMMAND
from flwr.supercore.protobuf import client as flower_client

from dynammo_core.support.errors import ConfigError, RunError
from server.consortium.flower_app import APP_DIRECTORY, description_of, staged_app
from server.gate.operator_token import FILE_VARIABLE, HEADER, read_token

COMMAND_LINE, EXECUTOR, SERVER_APP = "flwr", "flower-superexec", "flwr-serverapp"
STARTED = (EXECUTOR, *sorted(set(TASK_TYPE_TO_COMMAND.values())))
"""Names of the programs that a SuperLink, or what it starts, finds on its path."""


def install_programs(folder: Path) -> None:
    """Write the scripts into `folder`, which must come first on the PATH of a SuperLink.

    Raises:
        ConfigError: they cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in STARTED:
            words = shlex.join([sys.executable, "-P", "-m", __name__, name])
            (folder / name).write_text(f'#!/bin/sh\nexec {words} "$@"\n', encoding="utf-8")
            (folder / name).chmod(0o700)
    except OSError as error:
        raise ConfigError(
            f"cannot write to the folder {folder}: {error.strerror}",
            remedy="Give the account that runs the server write permission",
        ) from error


def show_token(token: str) -> None:
    """Make every Flower client of this process send the token with each request from now on."""
    plain = flower_client.ProtobufClient._send

    def send(self: Any, context: Any, *, stream: bool = False) -> Any:
        context.request.headers[HEADER] = token
        return plain(self, context, stream=stream)

    flower_client.ProtobufClient._send = send  # type: ignore[method-assign]


def refuse_foreign_app(bundle: bytes) -> None:
    """Refuse a run whose bundle, as Flower built it, differs from a bundle of the files that are installed here.

    Raises:
        RunError: they differ in any byte.
    """
    with tempfile.TemporaryDirectory() as folder:
        installed = build_fab_from_disk(staged_app(APP_DIRECTORY, Path(folder) / "app"))
    if bundle != installed:
        raise RunError(
            "the app of this run differs from the one installed on the server, so it was not started",
            remedy="Submit runs with `dynammo-server run`, from the installation that started the server",
        )


def run_own_server_app(*_: object, grid: Any, context: Any, **__: object) -> Any:
    """Run the installed ServerApp, whichever app a run names."""
    from server.app import app

    return run(grid=grid, context=context, server_app_dir=str(APP_DIRECTORY), loaded_server_app=app)


def keep_to_own_server_app() -> None:
    """Keep this process from unpacking or loading what a run brings; it uses the installed settings instead."""

    def compared(bundle: bytes, **_: object) -> Path:
        refuse_foreign_app(bundle)
        return APP_DIRECTORY

    def directory(*_: object) -> Path:
        return description_of(APP_DIRECTORY)

    runner: Any = import_module("flwr.superlink.runtime.run_serverapp")
    for name, replacement in (
        ("install_from_fab", compared),
        ("get_project_dir", directory),
        ("run_", run_own_server_app),
    ):
        getattr(runner, name)  # raises where another version of Flower would go on to load what comes with a run
        setattr(runner, name, replacement)


def main() -> None:
    """Start the program that the first argument names; the other arguments are Flower's."""
    name = sys.argv.pop(1)
    if name not in (COMMAND_LINE, EXECUTOR, SERVER_APP):
        sys.exit(f"a consortium's server does not run {name}")
    show_token(read_token(Path(os.environ[FILE_VARIABLE])))
    if name == SERVER_APP:
        keep_to_own_server_app()
    sys.argv[0] = name
    (program,) = entry_points(group="console_scripts", name=name)
    program.load()()


if __name__ == "__main__":
    main()
