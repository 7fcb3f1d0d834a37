"""The status page: over HTTP for what it says and what it refuses, and in headless Chromium for what a person sees."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from status_runs import SITES, START, TASKS, append, completed, failed, first_task, write_run

from dynammo_core.support.errors import ConfigError, RunError
from server.watch.lookout import Lookout, run_directories
from server.watch.metrics import metrics
from server.watch.status_page import StatusServer

FlowerRuns = Callable[[], Mapping[int, tuple[str, str]]]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ODD = 'skin & "1"'  # a directory may be called so


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four runs: going on, dead, failed, and one with a name that needs quoting."""
    folder = tmp_path_factory.mktemp("consortium") / "runs"
    write_run(folder / "going-on", first_task(), 17)
    write_run(folder / "died", first_task(), 3)
    write_run(folder / "gave-up", failed(), 4)
    write_run(folder / ODD, completed())
    (folder.parent / "secret").mkdir()
    write_run(folder.parent / "secret" / "run", completed())
    return folder


def superlink() -> dict[int, tuple[str, str]]:
    return {17: ("running", ""), 3: ("finished:failed", "")}


@contextmanager
def serving(directories: Callable[[], list[Path]], ask: FlowerRuns = superlink) -> Iterator[int]:
    with StatusServer(Lookout(directories, ask), 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def port(runs: Path) -> Iterator[int]:
    with serving(lambda: run_directories(runs)) as port:
        yield port


def get(port: int, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    content = answer.read().decode()
    connection.close()
    return answer.status, dict(answer.getheaders()), content


class Text(HTMLParser):
    """The words of a page, without script and style, and its tags."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(page)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.words.append(data)


def test_all_runs_and_what_to_do_about_them(port: int, runs: Path) -> None:
    status, _, content = get(port, "/")
    page = Text(content)
    assert status == 200
    again = f"Continue with: dynammo-server run {runs / 'gave-up' / 'config.yaml'}"
    for words in (
        "going-on running 2/2 71.2 61.5",
        # It has no checkpoint.
        f"died dead continue with: dynammo-server run {runs / 'died' / 'config.yaml'} 2/2 71.2 61.5",
        f"gave-up failed task 2: no <quorum>. {again} 2/2 71.2 61.5",
        f"{ODD} completed 2/2 71.2 61.5",
    ):
        assert words in page.text
    links = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    assert links == [f"/run/{quote(name)}" for name in (ODD, "gave-up", "died", "going-on")] + ["/status.json"]
    assert {get(port, str(link))[0] for link in links} == {200}


def test_one_run_and_its_sites(port: int) -> None:
    page = Text(get(port, "/run/going-on")[2])
    for words in (
        "going-on running",
        "The method dynammo on moles .",
        "Waiting for hospital-b.",
        "Task 2/2 melanoma",
        "Stage adapt round 1 of 2",
        "Accuracy 71.2 %",
        "Mean class recall 61.5 %",
        "3 of 6 steps are done.",
        "2 in all; the latest first. hospital-b (NoAnswerBeforeDeadline, code 5) in task 1 adapt 2/2 hospital-b (Time",
        "1 naevus, <script>document.title = 'taken over'</script> 71.2 61.5",
    ):
        assert words in page.text
    not_there = "it is not connected: ask whether `dynammo-site start` is running"
    rows = re.findall(
        r"(\S+|<b id=\"x\">&) (answered|waited for) [\d:, days]+ ago (.*?) (?=hospital|<b|Accuracy)", page.text
    )
    assert rows == [
        ("hospital-a", "answered", "1.5 75.0 90.0 85.0 0 0"),
        ("hospital-b", "waited for", "2.5 20.0 52.5 33.5 0 2 NoAnswerBeforeDeadline, code 5 " + not_there),
        (SITES[2], "answered", "0.5 – – – 2 0"),
    ]


def test_foreign_text_is_text(port: int) -> None:
    page = Text(get(port, "/run/going-on")[2])
    assert [tag for tag, _ in page.tags].count("script") == 1  # the page's own
    assert not any(attributes.get("id") == "x" for _, attributes in page.tags)
    assert TASKS[0][1] in page.text


def test_page_loads_nothing_and_runs_only_its_own_script(port: int) -> None:
    _, headers, content = get(port, "/run/going-on")
    for _, attributes in Text(content).tags:
        assert not attributes.get("src")
        assert (attributes.get("href") or "/").startswith("/")
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe-inline" not in policy.split("script-src")[1]
    assert headers["Cache-Control"] == "no-store"
    assert '<noscript><meta http-equiv="refresh" content="3"></noscript>' in content


def test_json_holds_the_same(port: int) -> None:
    status, headers, content = get(port, "/status.json")
    overview = json.loads(content)
    assert (status, headers["Content-Type"]) == (200, "application/json; charset=utf-8")
    assert [run["state"] for run in overview["runs"]] == ["completed", "failed", "dead", "running"]
    assert [site["name"] for site in overview["runs"][-1]["sites"]] == list(SITES)
    assert overview["superlink_silence"] == ""


@pytest.mark.parametrize(
    "path",
    [
        "/run/",
        "/run/nowhere",
        "/run/../going-on",
        "/run/../../secret/run",
        "/run/%2e%2e/%2e%2e/secret/run",
        "/run/..%2f..%2fsecret%2frun",
        "/run/going-on/events.jsonl",
        "/run/going-on%00",
        "/events.jsonl",
        "/etc/passwd",
        "//etc/passwd",
    ],
)
def test_nothing_else_is_there(port: int, path: str) -> None:
    status, _, content = get(port, path)
    assert status == 404
    assert "There is no run of that name." in content


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_nothing_can_be_done(port: int, method: str) -> None:
    assert get(port, "/", method)[0] == 501


@pytest.mark.parametrize(
    ("host", "status"),
    [("127.0.0.1:1", 200), ("localhost", 200), ("evil.example", 403), ("127.0.0.1.evil.example", 403), ("[", 403)],
)
def test_other_names_do_not_lead_here(port: int, host: str, status: int) -> None:
    assert get(port, "/status.json", Host=host)[0] == status


def test_silent_superlink_is_told(runs: Path) -> None:
    def silent() -> list[dict[str, Any]]:
        raise RunError("the SuperLink at <here> does not answer")

    with serving(lambda: run_directories(runs), silent) as port:
        assert (
            "This shows only what the files say: the SuperLink at <here> does not answer."
            in Text(get(port, "/")[2]).text
        )


def test_no_run_and_a_run_without_a_word(tmp_path: Path) -> None:
    with serving(lambda: run_directories(tmp_path)) as port:
        assert "There are no runs yet." in get(port, "/")[2]
        write_run(tmp_path / "new", [], 17)
        page = Text(get(port, "/run/new")[2])
        assert "new starting" in page.text
        assert "0 of 0 steps are done." in page.text


def test_port_that_is_taken(port: int) -> None:
    with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}"):
        StatusServer(Lookout(list, superlink), port)


def test_browser_shows_the_run_and_keeps_up_with_it(tmp_path: Path) -> None:
    """The first look sees hospital-b waited for; every later one, by the page itself, finds an event more."""
    run = write_run(tmp_path / "going-on", first_task(), 17)
    looks = 0

    def directories() -> list[Path]:
        nonlocal looks
        looks += 1
        if looks == 4:  # two for the first page, before and after Flower is asked; then one for each time
            append(run, {"event": "answers", "time": START + 40, "step": 3, "answered": 2, "asked": 3})
        return [run]

    with serving(directories) as port:
        seen = chromium(f"http://127.0.0.1:{port}/run/going-on", tmp_path)
    page = Text(seen)
    assert looks >= 4
    assert "Sites answered 2 of 3" in page.text
    assert "Waiting for" not in page.text
    assert ("title", {}) in page.tags
    assert "going-on · dynammo-server status" in page.text  # no foreign script has changed it
    assert "hospital-b not connected" in page.text
    lost = next(attributes for _, attributes in page.tags if attributes.get("id") == "lost")
    assert "hidden" in lost


def test_browser_says_when_nobody_answers_any_more(tmp_path: Path) -> None:
    run = write_run(tmp_path / "going-on", first_task(), 17)
    looks = 0

    def directories() -> list[Path]:
        nonlocal looks
        looks += 1
        if looks > 2:
            raise ConnectionResetError  # the connection breaks, as when the command has ended
        return [run]

    with serving(directories) as port:
        page = Text(chromium(f"http://127.0.0.1:{port}/run/going-on", tmp_path))
    assert "Waiting for hospital-b." in page.text  # what was there stays
    lost = next(attributes for _, attributes in page.tags if attributes.get("id") == "lost")
    assert "hidden" not in lost


def test_defect_is_told_and_a_lost_connection_is_not(capfd: pytest.CaptureFixture[str]) -> None:
    errors: list[Exception] = [BrokenPipeError("gone"), RuntimeError("a defect")]

    def directories() -> list[Path]:
        raise errors.pop(0)

    with serving(directories) as port:
        for _ in range(2):
            with pytest.raises(http.client.RemoteDisconnected):
                get(port, "/")
    told = capfd.readouterr().err
    assert "RuntimeError: a defect" in told
    assert "gone" not in told


def chromium(url: str, folder: Path) -> str:
    """The page as headless Chromium has it after eight seconds of its own, hurried, time."""
    if CHROMIUM is None:
        pytest.skip("a page is looked at in Chromium, which is not installed")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    command += ["--no-proxy-server", "--virtual-time-budget=8000", "--dump-dom", url]
    environment = os.environ | {"HOME": str(folder)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout


def test_metrics_are_in_the_format_of_prometheus(port: int, runs: Path) -> None:
    status, headers, content = get(port, "/metrics")
    assert (status, headers["Content-Type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    lines = content.splitlines()
    sample = re.compile(r'[a-z_]+(\{[a-z]+="([^"\\]|\\.)*"(,[a-z]+="([^"\\]|\\.)*")*\})? -?[0-9.e+-]+')
    assert [line for line in lines if not line.startswith("# ") and not sample.fullmatch(line)] == []
    for line in (
        "# TYPE dynammo_site_failures_total counter",
        'dynammo_run_state{run="going-on",state="running"} 1',
        'dynammo_run_state{run="gave-up",state="failed"} 1',
        'dynammo_run_steps_finished{run="going-on"} 3',
        'dynammo_run_accuracy_percent{run="going-on"} 71.25',
        'dynammo_run_mean_class_recall_percent{run="going-on"} 61.5',
        'dynammo_site_mean_class_recall_percent{run="going-on",site="hospital-b"} 33.5',
        'dynammo_site_failures_total{run="going-on",site="hospital-b"} 2',
        'dynammo_run_steps{run="skin & \\"1\\""} 6',
    ):
        assert line in lines, content


def test_an_attempt_that_was_started_anew_alarms_nobody(tmp_path: Path, runs: Path) -> None:
    for name in ("gave-up", "gave-up.1", "gave-up.2"):
        shutil.copytree(runs / "gave-up", tmp_path / name)
    overview = Lookout(lambda: run_directories(tmp_path), superlink).look()
    told = metrics(overview, START)
    assert len(overview.runs) == 3
    assert 'dynammo_run_state{run="gave-up",state="failed"} 1' in told
    assert "gave-up." not in told


def test_a_full_disk_is_warned_of_before_it_stops_a_run(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lookout = Lookout(lambda: run_directories(runs), superlink, runs)
    assert lookout.look().free_bytes == pytest.approx(shutil.disk_usage(runs).free, rel=0.2)
    monkeypatch.setattr("server.watch.lookout.SCARCE_BYTES", 10**18)
    overview = lookout.look()
    assert [words.startswith("The disk of the runs has only ") for words in overview.warnings] == [True]
    assert f"dynammo_disk_free_bytes {overview.free_bytes}" in metrics(overview, START)
