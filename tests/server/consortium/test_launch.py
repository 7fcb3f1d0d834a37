"""A run handed to a real SuperLink: refused before it starts, watched, stopped, and not started twice."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hospitals import deployed
from small_runs import events, small_config
from superlinks import running_superlink
from typer.testing import CliRunner

import server.consortium.launch
from client.state.node_key import new_key_pair
from dynammo_core.code_identity import code_hash
from dynammo_core.configuration.config import Config, load_config
from dynammo_core.experiment import Experiment
from dynammo_core.support.errors import CheckpointError, ConfigError, RunError
from server.cli import app
from server.consortium.control import Control
from server.consortium.flower_programs import LOADED
from server.consortium.launch import follow, launch, operator_command, refuse_a_second, status_of, stop_run
from server.consortium.settings import ServerSettings
from server.consortium.sites import SiteRegister
from server.jobs.jobs import announcements, evaluation
from server.run_directory.checkpoint import CheckpointStore
from server.run_directory.directory import LATEST, Event, RunDirectory
from server.run_directory.event_tail import EventTail
from server.run_directory.flower_run import FLOWER_RUN, flower_run
from server.run_directory.lock import only_run, only_start
from server.run_directory.progress import Identity, Progress

CLASSES = ["0", "1", "2", "3"]


def registered(settings: ServerSettings, *names: str) -> ServerSettings:
    """As if these sites had been registered."""
    site = {"node": 1, "fingerprint": "SHA256:x", "added": "2026-01-31"}
    settings.sites.write_text(json.dumps(dict.fromkeys(names, site)))
    return settings


def refused(settings: ServerSettings, config: Config[Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        launch(settings, config)
    assert not settings.runs.exists()
    return str(caught.value)


def test_a_simulation_is_no_run_among_sites(no_superlink: ServerSettings) -> None:
    message = refused(registered(no_superlink, "general"), small_config("replay"))
    assert "the experiment does not name any sites. Accepted: federation.site_names: some of ['general']" in message


def test_a_site_that_is_not_registered(no_superlink: ServerSettings) -> None:
    settings = registered(no_superlink, "general", "st-elsewhere")
    message = refused(settings, deployed(["general", "st-elswhere"], CLASSES))
    assert "the site 'st-elswhere' is not registered (did you mean 'st-elsewhere'?)" in message
    assert "Register it with `dynammo-server sites add NAME KEY.pub`" in message
    settings.sites.unlink()
    assert "Accepted: no site is registered yet" in refused(settings, deployed(["general"], CLASSES))


def test_what_another_process_holds_is_not_started(no_superlink: ServerSettings) -> None:
    settings, config = registered(no_superlink, "general"), deployed(["general"], CLASSES, "replay")
    directory = RunDirectory.create(settings.runs, config).path
    (directory / "checkpoints").mkdir()
    (directory / "checkpoints" / LATEST).touch()
    for hold, state in ((only_run, "is in progress"), (only_start, "is being started")):
        for resume in (None, directory):
            with hold(directory), pytest.raises(RunError, match=rf"{state}: process {os.getpid()} on \S+ since "):
                launch(settings, config, resume=resume)
    assert {path.name for path in settings.runs.rglob("*")} == {directory.name, "config.yaml", "checkpoints", LATEST}


def test_a_run_without_a_checkpoint_is_not_resumed_and_keeps_the_reason_of_its_end(
    no_superlink: ServerSettings,
) -> None:
    settings, config = registered(no_superlink, "general"), deployed(["general"], CLASSES, "replay")
    directory = RunDirectory.create(settings.runs, config)
    directory.log("run_failed", message="nobody has approved it", failures=[])
    again = f"Start it with `dynammo-server run {directory.path}/config.yaml`"
    with pytest.raises(CheckpointError, match=again):
        launch(settings, config, resume=directory.path)
    assert [event["event"] for event in events(directory.path)] == ["run_failed"]


def saved(directory: RunDirectory, config: Config[Any]) -> RunDirectory:
    """With a checkpoint, saved under that experiment."""
    identity = Identity(config.canonical_json(), code_hash(config), "")
    CheckpointStore(directory.checkpoints, identity).save(Progress(next_step=4), {}, {})
    return directory


def test_a_change_that_a_run_cannot_take_is_refused_before_it_can_end_the_run(no_superlink: ServerSettings) -> None:
    settings, config = registered(no_superlink, "general"), deployed(["general"], CLASSES, "replay")
    directory = saved(RunDirectory.create(settings.runs, config), config)
    other = deployed(["general"], CLASSES, "replay", {"memory": {"exemplars": 25}})
    with pytest.raises(CheckpointError, match=r"memory.exemplars \(then 24, now 25\).*Accepted: .*federation.quorum"):
        launch(settings, other, resume=directory.path)
    assert not (directory.path / "events.jsonl").exists()


@pytest.mark.parametrize("content", [None, "", "{}", "[]", '{"run-id": "x"}'])
def test_a_folder_that_is_no_run_among_sites(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / FLOWER_RUN).write_text(content)
    with pytest.raises(ConfigError, match="is not the run directory of a consortium's run"):
        flower_run(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "[" * 100_000, '{"run-id": "x"}', '{"run-id": [1]}'])
def test_a_file_that_names_no_run_is_no_obstacle_to_a_new_one(no_superlink: ServerSettings, content: str) -> None:
    directory = no_superlink.runs / "small-1"
    directory.mkdir(parents=True)
    (directory / FLOWER_RUN).write_text(content)
    refuse_a_second(Control(no_superlink), directory)  # or it would ask the SuperLink, which does not run
    assert operator_command("run", directory, "config.yaml") == f"dynammo-server run {directory}/config.yaml"


def test_a_folder_that_cannot_be_written_is_named_before_anything_is_submitted(no_superlink: ServerSettings) -> None:
    settings, config = registered(no_superlink, "general"), deployed(["general"], CLASSES, "replay")
    settings.flower_home.mkdir(exist_ok=True, parents=True)
    (settings.flower_home / "submitted").touch()
    with pytest.raises(CheckpointError, match=rf"cannot write {settings.flower_home}/submitted/{config.run_name}.yaml"):
        launch(settings, config)


@pytest.fixture(scope="module")
def consortium(superlink: ServerSettings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerSettings]:
    """Its one site never connects."""
    key = tmp_path_factory.mktemp("key") / "site.key.pub"
    key.write_bytes(new_key_pair("general")[1])
    register = SiteRegister(superlink, Control(superlink))
    register.add("general", key)
    yield superlink
    register.remove("general")


@pytest.fixture(scope="module")
def submitted(consortium: ServerSettings) -> tuple[Path, Config[Any]]:
    """A run that waits for its site."""
    config = deployed(["general"], CLASSES, "replay", {"federation": {"patience_seconds": 3600}})
    return launch(consortium, config, track=["tensorboard"]), config


def left_of(settings: ServerSettings, config: Config[Any]) -> set[Path]:
    """Files and folders of an experiment that was not begun."""
    return {path for path in settings.folder.rglob("*") if config.run_name in path.name and path.suffix != ".lock"}


@pytest.mark.slow
def test_what_cannot_work_is_refused_in_the_checks_own_words_before_anyone_is_asked(
    consortium: ServerSettings, tmp_path: Path
) -> None:
    config = deployed(["general"], CLASSES, "replay", {"federation": {"stages": {"trian": {"quorum": 0.5}}}})
    with pytest.raises(ConfigError, match=r"unknown stage 'trian' \(did you mean 'train'\?\)") as own:
        Experiment(config).check()
    file = tmp_path / "experiment.yaml"
    file.write_text(config.to_yaml())
    for options in ([], ["--detach"]):
        told = CliRunner().invoke(app, ["run", str(file), *options, "--folder", str(consortium.folder)])
        assert told.exit_code == 1
        assert " ".join(told.stderr.split()) == f"error {own.value}"
        assert left_of(consortium, config) == set()


@pytest.mark.slow
def test_what_the_check_warns_of_is_told_to_the_operator(
    consortium: ServerSettings, caplog: pytest.LogCaptureFixture
) -> None:
    config = deployed(["general"], CLASSES, "replay", {"memory": {"exemplars": 8}})
    place = launch(consortium, config)
    assert "memory.exemplars: a site that holds all 4 classes keeps 2 exemplars of each" in caplog.messages
    stop_run(Control(consortium), place)


def loaded_process(settings: ServerSettings) -> int | None:
    """Id of the server's loaded process, and of none of its copies: these look the same, and it is their parent."""
    parents = dict[int, int]()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended
            loaded = LOADED.encode() in (process / "cmdline").read_bytes()
            if loaded and (process / "cwd").readlink() == settings.flower_home:
                parents[int(process.name)] = int((process / "stat").read_text().rpartition(")")[2].split()[1])
    return next((number for number, parent in parents.items() if parent not in parents), None)


@pytest.mark.slow
def test_a_run_that_ends_before_it_begins_leaves_its_log_and_tells_who_waits(
    consortium: ServerSettings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("server.consortium.launch.PATIENCE_SECONDS", 0.5)
    config, control = deployed(["general"], CLASSES, "replay", {"memory": {"exemplars": 20}}), Control(consortium)
    before = control.runs()
    while (loaded := loaded_process(consortium)) is None:  # the server has just begun, and loads
        time.sleep(0.1)
    os.kill(loaded, signal.SIGSTOP)
    try:
        with ThreadPoolExecutor() as pool:
            launched = pool.submit(launch, consortium, config)
            limit = time.monotonic() + 30
            while "Ctrl-C stops it" not in caplog.text and time.monotonic() < limit:
                time.sleep(0.1)
            (new,) = set(control.runs()) - set(before)
            control.stop(new)
            log = consortium.flower_home / "submitted" / f"{config.run_name}.log"
            words = rf"finished:stopped before it began.*No site was asked. Flower's log is in {log}"
            with pytest.raises(RunError, match=words):
                launched.result()
    finally:
        os.kill(loaded, signal.SIGCONT)
    assert "Ctrl-C stops it" in caplog.text
    assert left_of(consortium, config) == {log}


@pytest.mark.slow
def test_a_run_ends_with_a_superlink_that_was_killed(new_key: Path, tmp_path: Path) -> None:
    """Whoever started that has not asked how it ended, so its number still counts as that of a process."""
    with running_superlink(tmp_path / "consortium") as settings:
        SiteRegister(settings, Control(settings)).add("general", new_key)
        config = deployed(["general"], CLASSES, "replay", {"federation": {"patience_seconds": 3600}})
        place = launch(settings, config)
        with pytest.raises(RunError, match="is in progress"), only_run(place):
            pass
        os.kill(int((tmp_path / "superlink.pid").read_text()), signal.SIGKILL)
        limit, free = time.monotonic() + 60, False
        while not free:
            assert time.monotonic() < limit
            time.sleep(0.2)
            with suppress(RunError), only_run(place):
                free = True


@pytest.mark.slow
def test_a_run_waits_for_its_site_and_ends_when_it_is_stopped(
    superlink: ServerSettings, submitted: tuple[Path, Config[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, config = submitted
    control = Control(superlink)
    assert path.parent == superlink.runs
    assert load_config(path / "config.yaml") == config
    limit = time.monotonic() + 300
    while not (path / "events.jsonl").exists() or not events(path, "waiting"):
        assert time.monotonic() < limit, control.log_of(flower_run(path))
        time.sleep(0.2)
    assert events(path, "waiting")[0]["sites"] == [0]
    assert events(path, "run_started")[0]["site_names"] == ["general"]
    assert list(path.glob("tensorboard/events.*"))

    stop = f"dynammo-server stop {path} --folder {superlink.folder}"
    for resume in (None, path):  # neither the same experiment again nor the rest of it
        with pytest.raises(RunError, match=rf"the run in {path} is already running.*`{stop}`"):
            launch(superlink, config, resume=resume)

    control.stop(flower_run(path))
    monkeypatch.setattr(server.consortium.launch, "ASK_SECONDS", 0.0)
    heard: list[Event] = []
    again = f"dynammo-server run {path}/config.yaml --folder {superlink.folder}"  # no round was finished
    with pytest.raises(RunError, match=rf"finished:stopped.*`{again}`.*log is in .*flower.log"):
        follow(superlink, path, EventTail(path / "events.jsonl", from_end=False), heard.append)
    assert [event["event"] for event in heard][:3] == ["run_started", "step_started", "waiting"]
    assert (path / "flower.log").is_file()


@pytest.mark.slow
def test_jobs_answer_or_say_why_not(superlink: ServerSettings, submitted: tuple[Path, Config[Any]]) -> None:
    assert announcements(superlink) == {}  # nobody is connected
    path, _ = submitted
    with pytest.raises(CheckpointError, match=r"has no checkpoint.*Start it with `dynammo-server run .*config.yaml"):
        evaluation(superlink, path)  # before the SuperLink is asked
    with pytest.raises(RunError, match=r"the run in .* has ended already \(finished:stopped\)"):
        stop_run(Control(superlink), path)
    with pytest.raises(ConfigError, match="no configuration file"):
        evaluation(superlink, path / "nowhere")


@pytest.mark.slow
def test_what_the_superlink_refuses_is_said_in_its_words(superlink: ServerSettings) -> None:
    control = Control(superlink)
    assert status_of(control, 424242)[0] == "finished:unknown"
    for refusal in (
        lambda: control.stop(424242),
        lambda: control.submit(b"no archive", {}),
    ):
        with pytest.raises(RunError, match=r"the SuperLink at 127.0.0.1:\d+ refuses `(stop|start)-run`: \w+") as caught:
            refusal()
        assert "Check that it is running" not in str(caught.value)
        assert len(str(caught.value)) < 1000
