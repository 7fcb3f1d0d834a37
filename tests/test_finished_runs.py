"""Finished runs that tests share: found again while nothing differs, and made anew where a test has changed one."""

from __future__ import annotations

from pathlib import Path

import finished_runs
import pytest
from finished_runs import FinishedRuns


def test_a_run_is_found_again_until_it_or_the_code_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = FinishedRuns(tmp_path).of("ridge")
    written = first.path / "events.jsonl"
    log, outcome = written.read_bytes(), first.outcome
    again = FinishedRuns(tmp_path).of("ridge")
    assert (again.path, written.read_bytes()) == (first.path, log)
    assert [message.metadata.message_id for message, _ in again.handled] == [
        message.metadata.message_id for message, _ in first.handled
    ]

    written.write_bytes(log + b"\n")
    assert FinishedRuns(tmp_path).of("ridge").outcome == outcome
    assert written.read_bytes() != log + b"\n"

    monkeypatch.setattr(finished_runs, "surroundings", lambda: "other code")
    assert FinishedRuns(tmp_path).of("ridge").path.parent != first.path.parent
