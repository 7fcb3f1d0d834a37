"""The run directory: where it lies, that nothing in it is ever deleted, and the log that only grows."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

import pytest
from small_runs import events, small_config

from dynammo_core.configuration.config import load_config
from dynammo_core.support.errors import CheckpointError
from server.run_directory.directory import EVENTS, RunDirectory

CONFIG = small_config()
NAME = f"small-{CONFIG.content_hash[:8]}"


def test_it_is_named_after_the_config_and_holds_it_resolved(tmp_path: Path) -> None:
    directory = RunDirectory.create(tmp_path / "runs", CONFIG)
    assert directory.path == tmp_path / "runs" / NAME
    assert load_config(directory.path / "config.yaml") == CONFIG
    assert [path.name for path in directory.path.iterdir()] == ["config.yaml"]


def test_an_earlier_run_is_moved_aside_with_all_it_holds(tmp_path: Path) -> None:
    for number in range(3):
        directory = RunDirectory.create(tmp_path, CONFIG)
        directory.log("run_started", number=number)
        directory.write("sites/site-000/memory", b"private")
    assert sorted(path.name for path in tmp_path.iterdir()) == [NAME, f"{NAME}.1", f"{NAME}.2"]
    for path, number in ((NAME, 2), (f"{NAME}.1", 0), (f"{NAME}.2", 1)):
        assert events(tmp_path / path)[0]["number"] == number
        assert (tmp_path / path / "sites" / "site-000" / "memory").read_bytes() == b"private"


def test_one_in_which_nothing_happened_is_taken(tmp_path: Path) -> None:
    RunDirectory.create(tmp_path, CONFIG)
    RunDirectory.create(tmp_path, CONFIG)
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


def test_other_configs_have_other_directories(tmp_path: Path) -> None:
    one = RunDirectory.create(tmp_path, CONFIG)
    other = RunDirectory.create(tmp_path, small_config(overrides={"seed": 2}))
    assert one.path != other.path


def test_the_log_grows_by_a_line_an_event_and_tells_who_listens(tmp_path: Path) -> None:
    heard: list[dict[str, Any]] = []
    directory = RunDirectory(tmp_path, [heard.append, lambda record: heard.append({"again": record["event"]})])
    directory.log("one", text="line\nbreak é", numbers=[1, 2])
    RunDirectory(tmp_path).log("two")
    lines = events(tmp_path)
    assert [line["event"] for line in lines] == ["one", "two"]
    assert lines[0]["text"] == "line\nbreak é"
    assert heard == [lines[0], {"again": "one"}]
    assert lines[0]["time"] <= lines[1]["time"]
    assert events(tmp_path, "two") == lines[1:]


def test_an_event_is_on_the_disk_before_a_listener_can_fail(tmp_path: Path) -> None:
    def fail(record: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        RunDirectory(tmp_path, [fail]).log("one")
    assert [line["event"] for line in events(tmp_path)] == ["one"]


def test_a_log_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot write .*events\.jsonl: No such file"):
        RunDirectory(tmp_path / "gone").log("one")


def test_a_real_full_disk_leaves_no_half_line(small_disk: Path) -> None:
    directory = RunDirectory(small_disk)
    directory.log("first")
    filler = os.open(small_disk / "filler", os.O_WRONLY | os.O_CREAT)
    while True:  # until not a page is left but the log's own
        try:
            os.write(filler, bytes(4096))
        except OSError:
            break
    os.close(filler)
    text = "x" * (os.sysconf("SC_PAGE_SIZE") // 4)  # the page that the log has takes three such lines, and part of one
    with pytest.raises(CheckpointError, match=r"events\.jsonl: No space left on device.*--resume") as caught:
        for _ in range(5):
            directory.log("more", text=text)
    assert "\n" not in str(caught.value)
    (small_disk / "filler").unlink()
    directory.log("last")
    lines = events(small_disk)  # each line is whole JSON
    assert [line["event"] for line in lines] == ["first", "more", "more", "more", "last"]


def test_files_are_written_whole(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    directory.write("a.txt", "é")
    directory.write_json("a.json", {"b": [1, None]})
    directory.write_csv("a.csv", ["site", "class"], [{"site": 0, "class": "wart, plane"}, {"site": 1, "class": "é"}])
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "é"
    assert json.loads((tmp_path / "a.json").read_text()) == {"b": [1, None]}
    with (tmp_path / "a.csv").open(encoding="utf-8", newline="") as file:
        assert list(csv.reader(file)) == [["site", "class"], ["0", "wart, plane"], ["1", "é"]]
    assert EVENTS not in {path.name for path in tmp_path.iterdir()}
