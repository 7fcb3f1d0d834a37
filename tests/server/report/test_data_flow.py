"""The data-flow sheet says what really leaves: its stages, numbers and bytes are those of a run."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest
from rich import filesize
from small_runs import SITES, Finished, run_small, small_config
from typer.testing import CliRunner

from dynammo_core.wire.protocol import NUMBERS
from server.cli import app
from server.report.data_flow import data_flow
from server.run_directory.directory import EVENTS


def rows(sheet: str, heading: str) -> list[list[str]]:
    part = sheet.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in part.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line[1:-1].split("|")] for line in lines[2:]]


@pytest.mark.parametrize("method", ["dynammo", "streaming_ridge"])
def test_what_the_sheet_says_is_what_left(finished: Finished, method: str) -> None:
    run = finished(method)
    sheet = data_flow(run.path)
    events = [json.loads(line) for line in (run.path / EVENTS).read_text().splitlines()]
    steps = [event for event in events if event["event"] == "step_finished"]
    told = rows(sheet, "What leaves each site")
    assert [row[:3] for row in told] == [
        [str(step["task"] + 1), step["stage"], str(step["rounds"])] for step in steps if step["round"] == 0
    ]
    actions = {stage.name: stage.action for stage in run.experiment.method.all_stages(1)}
    assert all(row[5] == ", ".join(f"`{name}`" for name in sorted(NUMBERS[actions[row[1]]])) for row in told)
    # A site that takes part in every stage sends all that the sheet allows, and not a byte more.
    sent: Counter[int] = Counter()
    received: Counter[int] = Counter()
    abstained: Counter[int] = Counter(dict.fromkeys(range(SITES), 0))
    for step in steps:
        for answer in step["sites"]:
            abstained[answer["site"]] += answer["abstained"]
            sent[answer["site"]] += answer["bytes_up"]
            received[answer["site"]] += answer["bytes_down"]
    always = [site for site in range(SITES) if not abstained[site]]
    assert always
    most = filesize.decimal(sent[always[0]])
    if method == "streaming_ridge":  # with few images a Gram matrix travels as a factor, shorter than the sheet's
        (told_most,) = re.findall(r"\nEach site sends at most (\S+) kB of tensors in all", sheet)
        assert sent[always[0]] < 1e3 * float(told_most)
    else:
        assert f"\nEach site sends at most {most} of tensors in all." in sheet
    assert rows(sheet, "What left in this run") == [
        [
            *(f"site {site}", str(len(steps)), str(abstained[site]), "0"),
            *(filesize.decimal(sent[site]), filesize.decimal(received[site])),
        ]
        for site in range(SITES)
    ]


def test_under_secure_aggregation_the_sheet_tells_of_masked_vectors(tmp_path: Path) -> None:
    run = run_small(small_config("ridge", {"federation.secure_aggregation": True}), tmp_path).path
    sheet = data_flow(run)
    steps = [
        event for event in map(json.loads, (run / EVENTS).read_text().splitlines()) if event["event"] == "step_finished"
    ]
    told = rows(sheet, "What leaves each site")
    assert all(row[5] == "`seconds`" for row in told)
    assert all(("`secure.masked`" in row[4]) is (row[1] != "remember") for row in told)
    assert "heads" not in "".join(row[4] for row in told)
    sent = sum(step["sites"][0]["bytes_up"] for step in steps)
    assert f"\nEach site sends at most {filesize.decimal(sent)} of tensors in all." in sheet
    assert "The server learns nothing but that sum" in sheet
    assert [row[2] for row in rows(sheet, "What left in this run")] == ["0"] * SITES


def test_an_experiment_that_has_not_run_has_a_sheet_too(finished: Finished, tmp_path: Path) -> None:
    config = finished("dynammo").path / "config.yaml"
    output = tmp_path / "sheet.md"
    result = CliRunner().invoke(app, ["data-flow", str(config), "--output", str(output)])
    assert result.exit_code == 0, result.output
    whole = data_flow(finished("dynammo").path)
    assert output.read_text() == whole.split("\n## What left in this run")[0]


def test_what_is_neither_is_named(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["data-flow", str(tmp_path)])
    assert result.exit_code == 1
    assert "is not a run directory" in result.stderr


def test_sums_that_can_be_corrected_are_told_of(finished: Finished) -> None:
    sheet = data_flow(finished("streaming_ridge").path)
    (told,) = (line for line in sheet.splitlines() if "records were withdrawn" in line)
    assert "`heads.classes` (3 float64" in told
    assert told.endswith("`class_counts`, `seconds`.")
    assert "withdrawn" not in data_flow(finished("dynammo").path)
