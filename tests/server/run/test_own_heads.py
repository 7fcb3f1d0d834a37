"""Whether joining pays: from the sites' tables through the door to the summary and the page."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from small_runs import SITES, run_small, small_config

from dynammo_core.plan import ALONE, PERSONAL
from dynammo_core.scoring.metrics import Counts
from server.report.report import write_report
from server.run.own_heads import COMMON, compare_heads


def test_a_run_compares_the_heads_at_each_site_and_its_page_says_so(tmp_path: Path) -> None:
    overrides = {"method.personal": True, "method.regulariser": 0.1}
    runs = [
        run_small(small_config("streaming_ridge", settings), tmp_path).path
        for settings in (overrides, {"method.regulariser": 0.1})
    ]
    summary, plain = (json.loads((run / "summary.json").read_text()) for run in runs)
    kept, usual = ({path.relative_to(run) for path in (run / "sites").rglob("*.*")} for run in runs)
    assert {path.parent.name for path in kept - usual} == {"heads"}  # nothing else stays with the site for this
    assert "own_heads" not in plain
    for key in ("accuracy_after_tasks", "site_mean_class_recalls", "bytes_up"):
        assert summary[key] == plain[key]  # the common head is tested as ever, and no tensor leaves beside
    assert summary["bytes_down"] > plain["bytes_down"]
    rows = summary["own_heads"]
    assert [row["site"] for row in rows] == [f"site {site}" for site in range(SITES)]
    assert [row[COMMON]["mean_class_recall"] for row in rows] == summary["site_mean_class_recalls"]
    assert all(row[PERSONAL]["accuracy"] is not None for row in rows)
    page = write_report(runs[0]).read_text()
    assert "Whether joining pays" in page and rows[0]["joining"] in page


def table(right: int, wrong: int) -> Counts:
    return np.array([[[[right, wrong], [wrong, right]]]])


def test_joining_is_judged_beyond_what_samples_differ_by() -> None:
    for personal, verdict in (
        (table(90, 10), "pays"),
        (table(62, 38), "no difference"),
        (table(30, 70), "does not pay"),
    ):
        counts = {COMMON: table(50, 50), PERSONAL: personal, ALONE: table(60, 40)}
        assert compare_heads(counts, (0, 1))["joining"] == verdict
    nothing = {COMMON: table(5, 5), PERSONAL: table(5, 5), ALONE: table(0, 0)}
    assert compare_heads(nothing, (0, 1))["joining"] is None
