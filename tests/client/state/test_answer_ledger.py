"""Recorded answers: sealed, bound to their run, and in nobody's way when a run resumes or newer code comes."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hospitals import Hospitals, deployed, make_hospitals
from small_runs import Outcome, Stopped, run_small

from client.consent.settings import SiteMemory, load_site
from client.state.answer_ledger import AnswerLedger, Question
from dynammo_core.configuration.config import Config
from dynammo_core.support.errors import AnsweredBefore, MemoryStoreError
from dynammo_core.wire.protocol import Report
from server.run_directory.directory import Listener

HELD = {"alpha": {"0": 9, "1": 9, "2": 9, "3": 9}, "beta": {"0": 9, "2": 9}, "gamma": {"1": 9, "3": 7}}
QUESTION = Question(3, 0, 0, "a" * 64, "b" * 64)
REPORT = Report(
    False,
    {"heads.x": torch.arange(6, dtype=torch.float64).reshape(2, 3), "half": torch.ones(3, dtype=torch.float16)},
    {"class_counts": [3, 0], "loss": 0.1 + 0.2},
)


def ledger(folder: Path, run: str = "run", key: bytes | None = None, **limits: int) -> AnswerLedger:
    return AnswerLedger(folder / run, SiteMemory(**limits), run=run, site="alpha", key=key)  # type: ignore[arg-type]


def work() -> Report:
    return REPORT


def no_work() -> Report:
    raise AssertionError("it was computed anew")


def free(*, count: bool) -> None:
    """Binds no run, and takes no other's place."""


# --- one file for each answer


@pytest.mark.parametrize("key", [None, bytes(range(32))])
def test_what_was_answered_comes_back_bit_for_bit(tmp_path: Path, key: bytes | None) -> None:
    ledger(tmp_path, key=key).once(QUESTION, work, free)
    report, again = ledger(tmp_path, key=key).once(QUESTION, no_work, free)
    assert again
    assert (report.abstained, report.numbers) == (False, REPORT.numbers)
    for name, tensor in REPORT.weights.items():
        assert report.weights[name].dtype == tensor.dtype
        assert torch.equal(report.weights[name], tensor)
    (file,) = ledger(tmp_path).folder.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    assert (b"heads.x" in file.read_bytes()) is (key is None)


def test_abstaining_is_an_answer_too(tmp_path: Path) -> None:
    ledger(tmp_path).once(QUESTION, lambda: Report(True), free)
    assert ledger(tmp_path).once(QUESTION, no_work, free) == (Report(True), True)


def test_the_same_weights_under_newer_code_get_what_was_answered(tmp_path: Path) -> None:
    ledger(tmp_path).once(QUESTION, work, free)
    newer = replace(QUESTION, proposal="c" * 64)
    assert ledger(tmp_path).once(newer, no_work, free)[1]
    other = replace(newer, asked="d" * 64)
    assert not ledger(tmp_path).once(other, work, free)[1]  # a person has approved it
    with pytest.raises(AnsweredBefore):
        ledger(tmp_path).once(replace(other, asked="e" * 64), no_work, free)
    assert ledger(tmp_path).once(QUESTION, no_work, free)[1]


def test_work_that_fails_is_no_answer(tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        ledger(tmp_path).once(QUESTION, no_work, free)
    assert not ledger(tmp_path).once(replace(QUESTION, asked="f" * 64), work, free)[1]


def test_a_run_that_may_not_ask_is_told_before_any_work(tmp_path: Path) -> None:
    def refuse(*, count: bool) -> None:
        raise PermissionError

    with pytest.raises(PermissionError):
        ledger(tmp_path).once(QUESTION, no_work, refuse)
    ledger(tmp_path).once(QUESTION, work, free)
    assert ledger(tmp_path).once(QUESTION, no_work, refuse)[1]  # what it knows already it may know again


@pytest.mark.parametrize("damage", ["a flipped bit", "cut off", "empty", "another run's"])
def test_a_damaged_answer_is_refused_and_not_computed_anew(tmp_path: Path, damage: str) -> None:
    key = bytes(range(32))
    ledger(tmp_path, key=key).once(QUESTION, work, free)
    (file,) = ledger(tmp_path).folder.iterdir()
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    if damage == "another run's":
        ledger(tmp_path, "other", key).once(QUESTION, work, free)
        content = bytearray(next(ledger(tmp_path, "other").folder.iterdir()).read_bytes())
    file.write_bytes({"cut off": content[:-9], "empty": b""}.get(damage, content))
    with pytest.raises(MemoryStoreError):
        ledger(tmp_path, key=key).once(QUESTION, no_work, free)


def test_two_processes_that_are_asked_at_once_work_once(tmp_path: Path) -> None:
    started, done = [], threading.Barrier(4)

    def slow() -> Report:
        started.append(1)
        return REPORT

    def ask() -> None:
        done.wait()
        ledger(tmp_path).once(QUESTION, slow, free)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(started) == 1


def test_the_oldest_go_and_the_last_one_and_mere_counts_stay(tmp_path: Path) -> None:
    large = Report(False, {"x": torch.zeros(100_000)}, {"class_counts": [1]})
    counts = Report(False, {}, {"class_counts": [1]})
    ledger(tmp_path, answers_megabytes=1).once(replace(QUESTION, step=0), lambda: counts, free)
    for step in range(1, 5):
        ledger(tmp_path, answers_megabytes=1).once(replace(QUESTION, step=step), lambda: large, free)
    kept = ledger(tmp_path, answers_megabytes=1)
    assert kept.size()[0] == 5
    assert kept.size()[1] < 10**6
    for step in (0, 3, 4):
        assert kept.once(replace(QUESTION, step=step), no_work, free)[1]
    for step in (1, 2):
        with pytest.raises(AnsweredBefore, match=r"dropped.*answers_megabytes"):
            kept.once(replace(QUESTION, step=step), no_work, free)


# --- in nobody's way


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Outcome]]:
    folder = tmp_path_factory.mktemp("undisturbed")
    yield {
        method: Outcome.of(run_small(config_of(method), folder / method / "runs", grid=sites(folder / method)).path)
        for method in ("dynammo", "streaming_ridge")
    }


def config_of(method: str) -> Config[Any]:
    return deployed(list(HELD), ["0", "1", "2", "3"], method)


def sites(folder: Path) -> Hospitals:
    return make_hospitals(folder, HELD)


@pytest.mark.parametrize(
    ("method", "stages"),
    [("dynammo", ["adapt", "balance", "remember", "evaluate"]), ("streaming_ridge", ["sum", "evaluate"])],
)
@pytest.mark.parametrize("answered", [False, True], ids=["before the answers", "after the answers"])
def test_a_run_that_is_cut_off_in_each_stage_and_resumed_is_the_run_that_was_not(
    tmp_path: Path, undisturbed: dict[str, Outcome], method: str, stages: list[str], answered: bool
) -> None:
    """After the answers every site has answered the step, and the checkpoint does not know it."""
    hospitals, runs = sites(tmp_path), tmp_path / "runs"
    path: Path | None = None

    def cut_in(stage: str) -> Listener:
        asked: list[object] = []

        def stop(told: dict[str, Any]) -> None:
            if told["event"] == "step_started":
                asked[:] = [told["stage"], told["task"]]
            all_there = told["event"] == "answers" and told["answered"] == told["asked"]
            if asked == [stage, 1] and (all_there if answered else told["event"] == "step_started"):
                raise Stopped

        return stop

    for stage in stages:
        with pytest.raises(Stopped):
            grid = Hospitals(hospitals.files)
            run_small(config_of(method), runs, grid=grid, resume=path, listeners=[cut_in(stage)])
        (path,) = runs.iterdir()
    assert path is not None
    run_small(config_of(method), runs, grid=Hospitals(hospitals.files), resume=path)
    assert Outcome.of(path) == undisturbed[method]
    lines = map(json.loads, load_site(hospitals.files["alpha"]).audit.read_text().splitlines())
    assert len([line for line in lines if line.get("again")]) == (len(stages) if answered else 0)


def test_newer_code_that_every_site_approved_goes_on_where_answers_were_given(
    tmp_path: Path, undisturbed: dict[str, Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    hospitals = sites(tmp_path)

    def stop(told: dict[str, Any]) -> None:
        if told["event"] == "answers" and told["step"] == 3 and told["answered"] == told["asked"]:
            raise Stopped

    with pytest.raises(Stopped):
        run_small(config_of("dynammo"), tmp_path / "runs", grid=hospitals, listeners=[stop])
    (path,) = (tmp_path / "runs").iterdir()
    for module in ("server.run_directory.checkpoint", "server.run.asking", "client.consent.approvals"):
        monkeypatch.setattr(f"{module}.code_hash", lambda *_: "e" * 64)
    monkeypatch.setattr("client.app.code_of", lambda *_: ("e" * 64, ""))
    run_small(config_of("dynammo"), tmp_path / "runs", grid=hospitals, resume=path, accept_new_code=True)
    assert Outcome.of(path) == undisturbed["dynammo"]
