from __future__ import annotations

import json
from pathlib import Path

import pytest
from door import play


@pytest.mark.soak
def test_a_researcher_compares_methods_and_loses_no_run(tmp_path: Path) -> None:
    played = play("researcher", tmp_path)
    (mistake,) = played.errors  # which the page makes on purpose
    assert "did you mean 'sites'" in mistake, "it names what was meant"
    runs = tmp_path / "runs"
    summaries = [json.loads(path.read_text()) for path in sorted(runs.glob("*/summary.json"))]
    first, second = (one for one in summaries if (one["seed"], one["sites"]) == (1, 3))
    assert first["accuracy_after_tasks"] == second["accuracy_after_tasks"], "a killed run goes on to the same figures"
    page = (runs / "compare" / "comparison" / "index.html").read_text()
    assert "Δ last" in page and "report.html" in page
    assert played.commands <= 10
