"""`flwr run` for real, on an app of numpy alone: whose code runs, what comes back, and what stays behind."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from flwr.app import Context, RecordDict

from dynammo_core.support.errors import RunError
from simulations.engines.flower_engine import run_flower
from simulations.engines.local_grid import LocalGrid

PYPROJECT = """
[project]
name = "toy"
version = "0.1.0"
description = "five sites that add up"
license = "Apache-2.0"
dependencies = ["a-package-that-no-index-has"]
[tool.flwr.app]
publisher = "test"
fab-include = ["server/**/*.py", "client/**/*.py"]
[tool.flwr.app.components]
serverapp = "server.app:app"
clientapp = "client.app:app"
[tool.flwr.app.config]
out = ""
stop = ""
text = ""
federation.sites = ""
federation.alpha = ""
federation.strict = ""
"""
SERVER = """
import json, os, time
from pathlib import Path
import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import ServerApp

app = ServerApp()


@app.main()
def main(grid, context):
    print("home", os.environ.get("FLWR_HOME"), flush=True)
    if context.run_config["stop"] == "fail":
        raise RuntimeError("no site holds task 3. Accepted: at least one. Choose another seed.")
    if context.run_config["stop"] == "wait":
        time.sleep(600)
    while not (nodes := sorted(grid.get_node_ids())):
        time.sleep(0.1)
    weights, failures, files = np.zeros(3), [], set()
    for _ in range(2):
        record = ArrayRecord({"w": Array(weights)})
        messages = [
            Message(RecordDict({"w": record, "site": ConfigRecord({"n": n})}), nodes[n % len(nodes)], "train.step")
            for n in range(5)
        ]
        sites = dict(zip(grid.push_messages(messages), range(5)))
        replies = {}
        while len(replies) < 5:
            for reply in grid.pull_messages([i for i, site in sites.items() if site not in replies]):
                replies[sites[reply.metadata.reply_to_message_id]] = reply
            time.sleep(0.05)
        good = {site: reply.content for site, reply in sorted(replies.items()) if not reply.has_error()}
        failures += [[site, reply.error.code] for site, reply in sorted(replies.items()) if reply.has_error()]
        files |= {str(content["about"]["file"]) for content in good.values()}
        weights = np.mean([content["w"]["w"].numpy() for content in good.values()], axis=0)
    result = {"weights": weights.tolist(), "failures": failures, "config": context.run_config}
    result |= {"server": __file__, "clients": sorted(files), "home": os.environ.get("FLWR_HOME")}
    Path(context.run_config["out"]).write_text(json.dumps(result))
"""
CLIENT = """
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train("step")
def step(message, context):
    site = message.content["site"]["n"]
    if site == 3:
        return Message(Error(101, "ConfigError"), reply_to=message)
    if site == 4:
        raise ValueError("patient 7")
    weights = Array(message.content["w"]["w"].numpy() + site + 1)
    about = ConfigRecord({"file": __file__})
    return Message(RecordDict({"w": ArrayRecord({"w": weights}), "about": about}), reply_to=message)
"""
linux = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
CONFIG = {"text": 'it\'s "ä" = 1\n#', "federation.sites": 5, "federation.alpha": 0.5, "federation.strict": True}


def write_app(folder: Path, server: str = SERVER, client: str = CLIENT) -> Path:
    files = {"pyproject.toml": PYPROJECT, "server/__init__.py": "", "client/__init__.py": ""}
    for name, text in (files | {"server/app.py": server, "client/app.py": client}).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"toy_{path.parent.name}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def snapshot(folder: Path) -> dict[Path, tuple[int, int]]:
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*")}


def processes_of(home: str) -> list[str]:
    """Ids of living processes that inherited this FLWR_HOME (Linux)."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if f"FLWR_HOME={home}".encode() in (entry / "environ").read_bytes():
                found.append(entry.name)
        except OSError:
            continue
    return found


def wait_until(condition: Callable[[], Any], seconds: float) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, f"not within {seconds} s"
        time.sleep(0.1)


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory and a PYTHONPATH with another copy of the app, a dead proxy, settings of another Flower."""
    other = write_app(
        tmp_path / "other", server="raise SystemError('other copy')", client="raise SystemError('other copy')"
    )
    monkeypatch.chdir(other)
    monkeypatch.setenv("PYTHONPATH", str(other))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setenv("FLWR_HOME", str(other))
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")  # folders are compared before and after
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    return other


@pytest.mark.slow
def test_a_run_by_flower_gives_what_the_local_grid_gives(tmp_path: Path, hostile: Path) -> None:
    app = write_app(tmp_path / "app")
    (app / "/".join("abcdefghijklm")).mkdir(parents=True)
    (app / "/".join("abcdefghijklm") / "deep.json").touch()  # Flower refuses apps that are deeper than ten folders
    before = snapshot(app), snapshot(hostile)
    lines: list[str] = []
    polls: list[int] = []
    log = tmp_path / "logs" / "flower.log"
    run_flower(
        app,
        nodes=2,
        run_config={**CONFIG, "out": str(tmp_path / "flower.json")},
        on_output=lines.append,
        on_poll=lambda: polls.append(len(lines)),
        log_file=log,
    )
    by_flower = json.loads((tmp_path / "flower.json").read_text())

    grid = LocalGrid(load(app / "client" / "app.py").app, nodes=2, run_config={})
    config = {**by_flower["config"], "out": str(tmp_path / "local.json")}
    load(app / "server" / "app.py").app(grid, Context(1, 1, {}, RecordDict(), config))
    by_local = json.loads((tmp_path / "local.json").read_text())

    # Sites 0, 1, 2 add 1, 2, 3, so the mean gains 2 in each of two rounds; sites 3 and 4 fail in both.
    assert by_flower["weights"] == by_local["weights"] == [4.0, 4.0, 4.0]
    assert by_flower["failures"] == by_local["failures"] == [[3, 101], [4, 2]] * 2
    assert by_flower["config"] == {**CONFIG, "stop": "", "out": str(tmp_path / "flower.json")}

    bundle = Path(by_flower["server"]).parent.parent
    assert bundle.parent == Path(by_flower["home"]) / "apps"
    assert by_flower["clients"] == [str(bundle / "client" / "app.py")]

    assert f"home {by_flower['home']}" in lines
    assert log.read_text().splitlines() == lines
    assert "\x1b" not in log.read_text()
    assert len(set(polls)) > 1  # polled while the output came
    assert (snapshot(app), snapshot(hostile)) == before
    assert not Path(by_flower["home"]).exists()
    assert processes_of(by_flower["home"]) == []


@pytest.mark.slow
def test_a_failed_run_is_an_error_with_the_servers_own_words(cluster: str, tmp_path: Path) -> None:
    app, log = write_app(tmp_path / "app"), tmp_path / "flower.log"
    with pytest.raises(RunError) as caught:
        run_flower(app, nodes=1, run_config={"stop": "fail"}, on_output=None, log_file=log, ray=cluster)
    paragraph = "no site holds task 3. Accepted: at least one. Choose another seed."
    assert str(caught.value) == f"{paragraph} Read the whole log in {log}."
    assert "RuntimeError: no site holds task 3" in log.read_text()
    assert "--- SuperLink" in log.read_text()


def test_a_refused_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"Flower refused the run: .*Invalid run configuration"):
        run_flower(
            write_app(tmp_path / "app"), nodes=1, run_config={"no": 1}, on_output=None, log_file=tmp_path / "flower.log"
        )
    with pytest.raises(RunError, match=r"nowhere/pyproject.toml does not describe a Flower app"):
        run_flower(tmp_path / "nowhere", nodes=1, run_config={}, on_output=None, log_file=tmp_path / "flower.log")


def test_an_app_that_cannot_be_loaded_is_named_by_its_exception(cluster: str, tmp_path: Path) -> None:
    app = write_app(tmp_path / "app", client="raise LookupError('no such table')\napp = None")
    with pytest.raises(RunError, match=r"finished:failed .*LookupError: no such table"):
        run_flower(app, nodes=1, run_config={}, on_output=None, log_file=tmp_path / "flower.log", ray=cluster)


@linux
def test_a_superlink_that_dies_ends_the_run(cluster: str, tmp_path: Path) -> None:
    def kill_superlink(line: str) -> None:
        if line.startswith("home "):
            for process in processes_of(line.split()[1]):
                if b"flower-superlink" in Path(f"/proc/{process}/cmdline").read_bytes():
                    os.kill(int(process), signal.SIGKILL)

    with pytest.raises(RunError, match="ended during the run"):
        run_flower(
            write_app(tmp_path / "app"),
            nodes=1,
            run_config={"stop": "wait"},
            on_output=kill_superlink,
            log_file=tmp_path / "flower.log",
            ray=cluster,
        )


@linux
@pytest.mark.parametrize(
    "signal_number",
    # SIGINT takes the way of a run that ends; Python leaves SIGTERM to the system, which ends the process as SIGKILL.
    [*(pytest.param(other, marks=pytest.mark.soak) for other in (signal.SIGINT, signal.SIGTERM)), signal.SIGKILL],
)
def test_nothing_outlives_whoever_started_the_run(tmp_path: Path, signal_number: int) -> None:
    app = write_app(tmp_path / "app")
    script = (
        "import signal, sys; from pathlib import Path; from simulations.engines.flower_engine import run_flower\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "app, log = map(Path, sys.argv[1:])\n"
        "run_flower(app, nodes=1, run_config={'stop': 'wait'}, on_output=print, log_file=log)"
    )
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", script, str(app), str(tmp_path / "flower.log")],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
        cwd=Path(__file__).parents[3],
    ) as starter:
        assert starter.stdout is not None
        home = next(line.split()[1] for line in starter.stdout if line.startswith("home "))
        assert len(processes_of(home)) > 3
        starter.send_signal(signal_number)
        starter.wait(timeout=30)
    wait_until(lambda: not processes_of(home) and not Path(home).exists(), seconds=30)
