"""What a stranger's app can do on the server: without the token it is not submitted, with it it is not started."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import tomli_w
from flwr.cli.build import build_fab_from_disk
from flwr.supercore.constant import TaskType
from flwr.supercore.superexec.executor.types import ExecutionSpec, LaunchResultStatus

from dynammo_core.support.errors import RunError
from server.consortium.control import Control
from server.consortium.flower_app import APP_DIRECTORY, flower_environment, staged_app
from server.consortium.flower_programs import STARTED, CopyingExecutor, refuse_foreign_app
from server.consortium.launch import status_of
from server.consortium.settings import ServerSettings

VERSIONS = ["1.0.0", "1/../../../taken"]


def foreign_app(folder: Path, version: str) -> Path:
    """An app of the same name that leaves a mark when any of its code is imported."""
    code = f"import pathlib\npathlib.Path({str(folder / 'mark')!r}).write_text('ran')\n"
    (folder / "app" / "server").mkdir(parents=True)
    for name in ("__init__.py", "app.py"):
        (folder / "app" / "server" / name).write_text(code)
    app = {
        "publisher": "dynammo",
        "fab-include": ["server/*.py"],
        "components": {"serverapp": "server.app:app", "clientapp": "server.app:app"},
        "config": {"config": ""},
    }
    project = {"name": "dynammo", "version": version, "dependencies": ["flwr"]}
    text = tomli_w.dumps({"project": project, "tool": {"flwr": {"app": app}}})
    (folder / "app" / "pyproject.toml").write_text(text)
    return folder / "app"


def unpacked(settings: ServerSettings) -> set[Path]:
    return set(settings.folder.rglob("taken*")) | set((settings.flower_home / "apps").glob("*"))


def test_a_loaded_process_that_is_just_ending_takes_nothing_along(no_superlink: ServerSettings) -> None:
    """Its input is closed, and it has not ended yet."""
    executor, deaf = CopyingExecutor(), [sys.executable, "-c", "import os, time; os.close(0); print(); time.sleep(600)"]
    executor._loaded.kill()
    executor._loaded.communicate()
    executor._loaded = ending = subprocess.Popen(deaf, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert ending.stdout is not None
        ending.stdout.readline()
        spec = ExecutionSpec(TaskType.SERVER_APP, no_superlink.address, "x", True, None, False, os.getpid(), True, 1)
        assert executor.launch(spec).status is LaunchResultStatus.FAILED
        assert ending.wait(30) < 0  # so the next run gets another one
    finally:
        ending.kill()
        with suppress(BrokenPipeError):
            ending.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS)
def test_a_foreign_app_is_not_started(superlink: ServerSettings, tmp_path: Path, version: str) -> None:
    control, before = Control(superlink), unpacked(superlink)
    run = control.submit(build_fab_from_disk(foreign_app(tmp_path, version)), {"config": "x"})
    limit = time.monotonic() + 120
    while not (status := status_of(control, run))[0].startswith("finished"):
        assert time.monotonic() < limit, control.log_of(run)
        time.sleep(0.5)
    assert status[0] == "finished:failed"
    assert "differs from the one installed on the server" in status[1]
    assert not (tmp_path / "mark").exists()
    assert unpacked(superlink) == before


@pytest.mark.slow
def test_plain_flwr_of_another_account_submits_nothing(superlink: ServerSettings, tmp_path: Path) -> None:
    """Such an account knows the address and the authority's certificate, and calls from an operator's machine."""
    before = Control(superlink).runs()
    connection = {"address": superlink.address, "root-certificates": str(superlink.ca_certificate)}
    home = tmp_path / "home"
    home.mkdir()
    (home / "config.toml").write_text(tomli_w.dumps({"superlink": {"default": "there", "there": connection}}))
    command = [sys.executable, "-m", "flwr.cli.app", "run", str(foreign_app(tmp_path, "1.0.0")), "there"]
    done = subprocess.run(command, env=flower_environment(home), cwd=home, capture_output=True, text=True, timeout=120)
    assert done.returncode or "403" in done.stdout + done.stderr
    assert Control(superlink).runs() == before


def test_only_the_installed_app_is_not_foreign(tmp_path: Path) -> None:
    own = staged_app(APP_DIRECTORY, tmp_path / "own" / "app")
    refuse_foreign_app(build_fab_from_disk(own))
    with (own / "configs" / "digits.yaml").open("a") as file:
        file.write("# changed\n")
    with pytest.raises(RunError, match="differs from the one installed"):
        refuse_foreign_app(build_fab_from_disk(own))


@pytest.mark.parametrize("name", [name for name in STARTED if name not in ("flower-superexec", "flwr-serverapp")])
def test_no_other_kind_of_app_is_started(name: str, tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-m", "server.consortium.flower_programs", name, "--help"]
    done = subprocess.run(command, cwd=tmp_path, env=dict(os.environ), capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert f"does not run {name}" in done.stderr
