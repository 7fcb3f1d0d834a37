from __future__ import annotations

from pathlib import Path

import pytest
from door import play


@pytest.mark.soak
def test_an_operator_trains_with_two_hospitals_adds_classes_and_exports_a_model(tmp_path: Path) -> None:
    played = play("operator", tmp_path)
    (refusal,) = played.errors  # nobody has approved the new classes yet
    assert "108" in refusal and "mercy" in refusal and "dynammo-site approve" in refusal
    card = (tmp_path / "digits.md").read_text()
    assert all(f"digit {digit}" in card for digit in range(4))
    assert "Accuracy at county" in card
    assert (tmp_path / "digits.safetensors").is_file()
    assert played.commands <= 22
