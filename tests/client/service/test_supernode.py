"""`dynammo-site start` against a real SuperLink: let in or told why not, started again, and nothing left behind."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections import deque
from contextlib import suppress
from pathlib import Path

import pytest
from foreign_apps import CLIENT, SERVER, app_of
from site_bench import (
    ROOT,
    START,
    Started,
    SuperLink,
    free_port,
    make_site,
    processes_of,
    wait_until,
)

from client.consent.settings import SiteSettings
from client.doctor.connection import connection_findings
from client.service.daemon import Backoff
from client.service.supernode import relay

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


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
        assert f"already runs (process {started.process.pid} on " in second.stderr
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
        assert "exit code -9" in started.said("stopped by itself")[0]
        # The SuperLink counts the killed one as online, so the new one's activation fails until that has passed.
        assert "another machine uses the same private key" in started.said("is already online")[0]
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
    app = app_of(tmp_path / "app", {"stranger_server.py": SERVER, "stranger.py": CLIENT})
    started = Started(file)
    try:
        node = started.said("connected as node")[0].split()[-1]
        told = f"node='{node}' told='{tmp_path / 'told'}'"
        runs = (superlink.flwr("run", str(app), "here", "--run-config", told) for _ in range(5))
        at_work = next(copy for _ in runs if (copy := stopped_copy(settings.state)))  # so that it cannot end by itself
        assert not re.search(rb"[0-9a-f]{32}", (at_work / "cmdline").read_bytes()), "every account can read this"
        assert (at_work / "cwd").readlink() == settings.state / "cwd"
        assert re.search(r"^Umask:\s*0077$", (at_work / "status").read_text(), re.MULTILINE)
    finally:
        started.process.kill()
    started.ended()
    wait_until(lambda: not processes_of(settings.state), seconds=5)


def stopped_copy(state: Path) -> Path | None:
    """Stop the copy that answers a message as soon as it is there, and return its folder in /proc.

    It is the child of the loaded process, which looks alike, and lives for less than a second: `None` if it had ended
    before it could be stopped, as happens on a busy machine.
    """
    alike: list[int] = []

    def is_loaded() -> bool:
        for pid in processes_of(state):
            with suppress(OSError):
                if b"\0client.service.own_app\0" in Path("/proc", str(pid), "cmdline").read_bytes():
                    alike.append(pid)
        return bool(alike)

    wait_until(is_loaded, seconds=60)
    children, limit = Path("/proc", str(alike[0]), "task", str(alike[0]), "children"), time.monotonic() + 60
    while not (copies := children.read_text().split()):
        assert time.monotonic() < limit
        time.sleep(0.002)
    copy = Path("/proc", copies[0])
    with suppress(OSError):
        os.kill(int(copies[0]), signal.SIGSTOP)
        wait_until(lambda: state_of(copy) in "TZX", seconds=5)
        if state_of(copy) == "T":
            return copy
    return None


def state_of(process: Path) -> str:
    return re.findall(r"^State:\s*(\w)", (process / "status").read_text(), re.MULTILINE)[0]


def test_once_ends_with_the_reason(superlink: SuperLink, tmp_path: Path) -> None:
    _, unknown = site_at(superlink, tmp_path)
    _, nowhere = make_site(tmp_path / "nowhere", f"127.0.0.1:{free_port()}", superlink.authority.path)
    keyless, no_key = make_site(tmp_path / "keyless", superlink.address, superlink.authority.path)
    keyless.private_key.unlink()
    for path, words in {
        unknown: "not admitted: the key",
        nowhere: "not admitted: nothing listens at 127.0.0.1:",
        no_key: "Create one with `dynammo-site init`",
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


def test_a_refusal_is_one_line_on_the_screen_and_marked_in_the_log(tmp_path: Path) -> None:
    refusal = "step refused: the experiment digits (3f2a) waits for your approval"
    lines = [f"dynammo-site: {refusal}", f"dynammo-site: {refusal}", "Traceback (most recent call last):"]
    lines.append("INFO :      heartbeat")
    shown: list[str] = []
    logged: list[str] = []
    log = logging.Logger("log")
    log.addFilter(lambda record: logged.append(record.getMessage()) is not None)
    lines.append("a stranger's words\rdynammo-site: all is well\x1b]0;x\x07")
    with subprocess.Popen(["printf", r"%s\n", *lines], stdout=subprocess.PIPE, text=True) as child:
        relay(child, log, shown.append, deque())
    lines[-1] = "a stranger's words?dynammo-site: all is well?]0;x?"
    assert shown == [refusal]  # a second time within a minute only in the log, since a step is asked for more than once
    assert logged == lines[1:]
