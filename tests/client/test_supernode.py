"""`dynammo-site start` against a real SuperLink: let in or told why not, started again, and nothing left behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from flwr.common.constant import ErrorCode
from site_bench import SuperLink, free_port, make_site, processes_of, running_superlink, wait_until

from client.connection import connection_findings
from client.daemon import Backoff
from client.settings import SiteSettings

ROOT = Path(__file__).parents[2]
START = "import typer; from client.start_command import start; typer.run(start)"
SERVER = """
import os
from flwr.app import Message, RecordDict
from flwr.serverapp import ServerApp
app = ServerApp()

@app.main()
def main(grid, context):
    message = Message(RecordDict(), dst_node_id=int(context.run_config["node"]), message_type="train")
    (reply,) = grid.send_and_receive([message], timeout=120)
    if context.run_config["told"]:
        with open(context.run_config["told"] + ".new", "w") as file:
            file.write(str(reply.error.code))
        os.rename(file.name, context.run_config["told"])
"""
CLIENT = """
import os, sys, time
from flwr.clientapp import ClientApp
app = ClientApp()

@app.train()
def train(message, context):
    path = context.node_config["site-config"] + ".at_work"
    with open(path, "w") as file:
        print(os.getpid(), os.getcwd(), oct(os.umask(0)), file=file)
    time.sleep(600)
"""
PYPROJECT = """
[project]
name = "sleeper"
version = "1.0.0"
[tool.flwr.app]
publisher = "test"
fab-include = ["**/*.py"]
[tool.flwr.app.components]
serverapp = "sleeper_server:app"
clientapp = "sleeper:app"
[tool.flwr.app.config]
node = ""
told = ""
"""
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


class Started:
    """A `dynammo-site start` of its own process, and the lines it has said so far."""

    def __init__(self, site_yaml: Path, *options: str, installed: Path = ROOT) -> None:
        self.lines: list[str] = []
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "FLWR_HOME": "/nonexistent"}
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(installed)])
        self.process = subprocess.Popen(
            [sys.executable, "-c", START, str(site_yaml), *options],
            cwd=site_yaml.parent,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=lambda: self.lines.extend(self.process.stdout or ()), daemon=True)
        self._reader.start()

    def said(self, words: str) -> list[str]:
        """The lines that hold these words; waits for the first of them."""
        wait_until(lambda: any(words in line for line in self.lines) or self.process.poll() is not None, seconds=40)
        self._reader.join(0 if self.process.poll() is None else 10)
        found = [line for line in self.lines if words in line]
        assert found, self.lines
        return found

    def ended(self) -> int:
        code = self.process.wait(timeout=30)
        self._reader.join(10)
        return code


@pytest.fixture(scope="module")
def superlink(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SuperLink]:
    with running_superlink(tmp_path_factory.mktemp("superlink")) as link:
        yield link


def app_of(folder: Path, **files: str) -> Path:
    """A folder with an app for `flwr run`, each file's name without .py."""
    folder.mkdir()
    (folder / "pyproject.toml").write_text(PYPROJECT)
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    return folder


def site_at(link: SuperLink, folder: Path) -> tuple[SiteSettings, Path]:
    return make_site(folder / "a b", link.address, link.authority.path)


def status(link: SuperLink, node: str) -> str:
    nodes = json.loads(link.flwr("supernode", "list", "here", "--format", "json"))["nodes"]
    found: str = next(entry["status"] for entry in nodes if entry["node-id"] == node)
    return found


def test_a_key_is_waited_for_and_a_wanted_stop_takes_leave(superlink: SuperLink, tmp_path: Path) -> None:
    settings, file = site_at(superlink, tmp_path)
    started = Started(file)
    try:
        refused = started.said("not registered")
        assert f"Send {settings.private_key}.pub to the operator" in refused[0]
        superlink.register(settings)
        node = started.said("connected as node")[0].split()[-1]
        assert len(started.said("not registered")) == 1  # said once, asked again after 1 s, 2 s ...
        assert connection_findings(settings)[-1].state == "ok"  # which does not disturb it, as the next line shows

        second = subprocess.run(
            [sys.executable, "-c", START, str(file)], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
        )
        assert second.returncode == 1
        assert f"runs already (process {started.process.pid} holds" in second.stderr
        assert status(superlink, node) == "online"
    finally:
        started.process.terminate()
    assert started.ended() == 0
    assert started.lines[-1] == "stopped\n"
    assert processes_of(settings.state) == []
    assert status(superlink, node) == "offline"  # at once: a SuperNode that is killed counts as online for a minute
    log = settings.log.read_text()
    assert re.search(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4} INFO +: +SuperNode ID: " + node, log, re.MULTILINE)
    assert "\x1b" not in log
    assert settings.log.stat().st_mode & 0o777 == 0o600
    assert settings.state.stat().st_mode & 0o777 == 0o700


def test_a_supernode_that_dies_is_started_again(superlink: SuperLink, tmp_path: Path) -> None:
    settings, file = site_at(superlink, tmp_path)
    superlink.register(settings)
    started = Started(file)
    try:
        child = int(re.findall(r"process (\d+)", started.said("SuperNode started")[0])[0])
        started.said("connected as node")
        before = processes_of(settings.state)
        assert child in before
        os.kill(child, signal.SIGKILL)
        assert "exit code -9" in started.said("ended unasked")[0]
        # The SuperLink counts the killed one as online, so the new one's activation fails until that has passed.
        assert "another machine runs with the same private key" in started.said("is online already")[0]
        assert not set(before) & set(processes_of(settings.state))
        assert len(started.said("SuperNode started")) > 1
    finally:
        started.process.send_signal(signal.SIGINT)
    assert started.ended() == 0
    assert processes_of(settings.state) == []


@pytest.mark.slow
def test_a_step_in_progress_does_not_outlive_a_start_that_is_killed(superlink: SuperLink, tmp_path: Path) -> None:
    settings, file = site_at(superlink, tmp_path)
    superlink.register(settings)
    app = app_of(tmp_path / "app", sleeper_server=SERVER, sleeper=CLIENT)
    started = Started(file, installed=app)
    try:
        node = started.said("connected as node")[0].split()[-1]
        superlink.flwr("run", str(app), "here", "--run-config", f"node='{node}'")
        at_work = Path(f"{file}.at_work")
        wait_until(lambda: at_work.exists() and at_work.read_text().endswith("\n"), seconds=60)
        pid, *folder, umask = at_work.read_text().split()
        assert int(pid) in processes_of(settings.state)
        assert " ".join(folder) == str(settings.state / "cwd")
        assert umask == "0o77"
    finally:
        started.process.kill()
    started.ended()
    wait_until(lambda: not processes_of(settings.state), seconds=5)


@pytest.mark.slow
def test_code_that_comes_with_a_run_is_not_executed(superlink: SuperLink, tmp_path: Path) -> None:
    """Neither under a name that is not installed, nor in the place of a module that is."""
    settings, file = site_at(superlink, tmp_path)
    superlink.register(settings)
    executed, told = tmp_path / "executed", tmp_path / "told"
    evil = f"open({str(executed)!r}, 'w').close()\n"
    app = app_of(tmp_path / "app", sleeper_server=SERVER, sleeper=evil + CLIENT, logging=evil, torch=evil, flwr=evil)
    started = Started(file)
    try:
        node = started.said("connected as node")[0].split()[-1]
        superlink.flwr("run", str(app), "here", "--run-config", f"node='{node}' told='{told}'")
        wait_until(told.exists, seconds=60)
    finally:
        started.process.send_signal(signal.SIGINT)
    assert started.ended() == 0
    assert list(settings.state.rglob("sleeper.py")), "Flower has unpacked it"
    assert told.read_text() == str(ErrorCode.CLIENT_APP_RAISED_EXCEPTION)
    assert not executed.exists()


def test_once_ends_with_the_reason(superlink: SuperLink, tmp_path: Path) -> None:
    _, unknown = site_at(superlink, tmp_path)
    _, nowhere = make_site(tmp_path / "nowhere", f"127.0.0.1:{free_port()}", superlink.authority.path)
    keyless, no_key = make_site(tmp_path / "keyless", superlink.address, superlink.authority.path)
    keyless.private_key.unlink()
    for path, words in {
        unknown: "not let in: the key",
        nowhere: "not let in: nothing listens at 127.0.0.1:",
        no_key: "Make one by `dynammo-site init`",
    }.items():
        started = Started(path, "--once")
        assert started.ended() == 1
        started.said(words)
        assert len(started.lines) == 2


def test_waits_double_and_are_short_again_after_a_steady_time() -> None:
    backoff = Backoff()
    # doubling from 1 s, at most 60 s
    assert [backoff.after(0) for _ in range(8)] == [1, 2, 4, 8, 16, 32, 60, 60]
    assert backoff.after(61) == 1
    assert backoff.after(0) == 2
