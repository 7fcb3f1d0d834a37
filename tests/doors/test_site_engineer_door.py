from __future__ import annotations

import csv
from pathlib import Path

import pytest
from door import play


@pytest.mark.soak
def test_a_site_engineer_takes_part_withdraws_a_record_and_uses_the_model(tmp_path: Path) -> None:
    played = play("site-engineer", tmp_path)
    (refusal,) = played.errors  # the operator's, before this site has approved
    assert "108" in refusal and "mercy" in refusal and "dynammo-site approve" in refusal
    with (tmp_path / "answers.csv").open() as file:
        answers = list(csv.DictReader(file))
    assert len(answers) == len(list((tmp_path / "images" / "digit 1").iterdir()))
    started = (tmp_path / "start.log").read_text()
    assert "approv" in started, "the site itself says what it waits for"
    assert played.commands <= 18
