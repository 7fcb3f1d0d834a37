"""Flower's programs on the server, as operators: each shows the operator's token, and none executes foreign code.

SuperExec and ServerApp call the SuperLink by a client that knows of no token, so each is started through this module,
which adds it. `dynammo-server start` puts scripts of Flower's names first on the path of its SuperLink for that. A
ServerApp is always the one that is installed here: what a run brings is compared with it, never unpacked and never
imported. It is a copy of a process that has loaded PyTorch and this project already. Programs of other kinds of apps,
which Flower would start as well, end with an error.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterable
from functools import partial
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from flwr.app import Message
from flwr.server.run_serverapp import run
from flwr.supercore.constant import TASK_TYPE_TO_COMMAND, TaskType
from flwr.supercore.inflatable.inflatable_utils import pull_objects
from flwr.supercore.protobuf.client import ProtobufClient
from flwr.supercore.superexec.executor import ExecutionSpec, LaunchResult
from flwr.supercore.superexec.executor.subprocess_executor import SubprocessExecutor
from flwr.superlink.grid import HttpGrid

from dynammo_core.support.errors import ConfigError, RunError
from dynammo_core.support.processes import answer_by_copies, is_alive
from dynammo_core.wire.waiting import SOON
from server.consortium.flower_app import APP_DIRECTORY, description_of, installed_bundle
from server.gate.operator_token import FILE_VARIABLE, HEADER, read_token

EXECUTOR, SERVER_APP = "flower-superexec", "flwr-serverapp"
STARTED = (EXECUTOR, *sorted(set(TASK_TYPE_TO_COMMAND.values())))
"""Names of the programs that a SuperLink, or what it starts, finds on its path."""

MODULE = "server.consortium.flower_programs"
LOADED = "loaded-serverapp"
"""The name here of the process whose copies are ServerApps."""
NEEDED = ("server.app", "server.run.run", "server.watch.progress", "server.trackers.tracking", "httpcore")
"""What every run needs; `httpcore` httpx loads with the first connection."""


def install_programs(folder: Path) -> None:
    """Write the scripts into `folder`, which must come first on the PATH of a SuperLink.

    Raises:
        ConfigError: they cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in STARTED:
            words = shlex.join([sys.executable, "-P", "-m", MODULE, name])
            (folder / name).write_text(f'#!/bin/sh\nexec {words} "$@"\n', encoding="utf-8")
            (folder / name).chmod(0o700)
    except OSError as error:
        raise ConfigError(
            f"cannot write to the folder {folder}: {error.strerror}",
            remedy="Give the account that runs the server write permission",
        ) from error


def refuse_foreign_app(bundle: bytes) -> None:
    """Refuse a run whose bundle, as Flower built it, differs from a bundle of the files that are installed here.

    Raises:
        RunError: they differ in any byte.
    """
    if bundle != installed_bundle():
        raise RunError(
            "the app of this run differs from the one installed on the server, so it was not started",
            remedy="Submit runs with `dynammo-server run`, from the installation that started the server",
        )


def run_own_server_app(*_: object, grid: Any, context: Any, **__: object) -> Any:
    """Run the installed ServerApp, whichever app a run names."""
    from server.app import app

    return run(grid=grid, context=context, server_app_dir=str(APP_DIRECTORY), loaded_server_app=app)


def keep_to_own_server_app(own: bytes = b"") -> None:
    """Keep this process from unpacking or loading what a run brings; it uses the installed settings instead.

    Args:
        own: a bundle of the installed code that was made before; another one is compared with what is installed now.
    """

    def compared(bundle: bytes, **_: object) -> Path:
        if bundle != own:
            refuse_foreign_app(bundle)
        return APP_DIRECTORY

    def directory(*_: object) -> Path:
        return description_of(APP_DIRECTORY)

    runner = "flwr.superlink.runtime.run_serverapp"
    replace(runner, "install_from_fab", compared)
    replace(runner, "get_project_dir", directory)
    replace(runner, "run_", run_own_server_app)
    replace(runner, "HttpGrid", BundlingGrid)
    replace("flwr.superlink.grid.http_grid", "pull_objects", partial(pull_objects, **SOON))


def show_token() -> None:
    """Make every Flower client of this process send the operator's token with each request from now on."""
    token, plain = read_token(Path(os.environ[FILE_VARIABLE])), ProtobufClient._send

    def send(self: Any, context: Any, *, stream: bool = False) -> Any:
        context.request.headers[HEADER] = token
        return plain(self, context, stream=stream)

    ProtobufClient._send = send  # type: ignore[method-assign]


def load_program(name: str) -> Any:
    """Return the function that is one of Flower's programs, by its name."""
    (program,) = entry_points(group="console_scripts", name=name)
    return program.load()


def replace(module: str, name: str, stand_in: object) -> None:
    """Replace a name in a module of Flower; raise where another version would go on without it."""
    loaded = import_module(module)
    getattr(loaded, name)
    setattr(loaded, name, stand_in)


class BundlingGrid(HttpGrid):
    """Flower's grid, which sends the small tensors of a message together."""

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages to sites."""
        from dynammo_core.wire.envelope import bundled  # and only here: a command line needs no PyTorch

        waiting = list(messages)
        for message in waiting:
            message.content = bundled(message.content)
        return super().push_messages(waiting)


class CopyingExecutor(SubprocessExecutor):
    """Starts a ServerApp as a copy of a loaded process, and Flower's other programs as Flower does."""

    def __init__(self) -> None:
        self._loaded = self._load()

    def launch(self, spec: ExecutionSpec) -> LaunchResult:
        """Start the program of a task; a ServerApp's token reaches it through a pipe."""
        if spec.task_type is not TaskType.SERVER_APP:
            return super().launch(spec)
        if self._loaded.poll() is not None:  # something killed it
            self._loaded = self._load()
        words = ["--runtime-api-address", spec.runtime_api_address, "--token", spec.token]
        words += ["--insecure"] if spec.insecure else ["--root-certificates", str(spec.root_certificates_path)]
        try:
            print(json.dumps([*words, "--parent-pid", str(spec.parent_pid)]), file=self._loaded.stdin, flush=True)
        except BrokenPipeError:  # it is just ending, and would take this process along, without which nothing runs
            self._loaded.kill()
            return LaunchResult.failed("the loaded process has ended")
        return LaunchResult.accepted()

    @staticmethod
    def _load() -> subprocess.Popen[str]:
        return subprocess.Popen([sys.executable, "-P", "-m", MODULE, LOADED], stdin=subprocess.PIPE, text=True)


def become_loaded() -> None:
    """Load what a ServerApp needs, and answer each line of standard input, its arguments, by a copy that is one."""
    from dynammo_core.code_identity import installed_hash, project_hash

    keep_to_own_server_app(installed_bundle())
    program = load_program(SERVER_APP)
    for module in NEEDED:
        import_module(module)
    loaded = project_hash()

    def run(arguments: str) -> None:
        sys.argv = [SERVER_APP, *json.loads(arguments)]
        if installed_hash() != loaded:  # a new version was installed meanwhile, and sites will run that one
            os.execvp(SERVER_APP, sys.argv)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)  # what a ServerApp prints goes to the log of its run
        os.dup2(nowhere, 2)
        program()

    answer_by_copies(run)


def main() -> None:
    """Start the program that the first argument names; the other arguments are Flower's."""
    name = sys.argv.pop(1)
    if name not in (EXECUTOR, SERVER_APP, LOADED):
        sys.exit(f"a consortium's server does not run {name}")
    show_token()
    replace("flwr.supercore.app_utils", "_pid_exists", is_alive)  # or one that ended counts until somebody asks for it
    if name == LOADED:
        become_loaded()
        return
    if name == SERVER_APP:
        keep_to_own_server_app()
    elif name == EXECUTOR:
        replace("flwr.supercore.superexec.run_superexec", "get_executor", lambda *_, **__: CopyingExecutor())
    sys.argv[0] = name
    load_program(name)()


if __name__ == "__main__":
    main()
