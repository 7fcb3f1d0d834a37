"""The ledger on the disk: whole or not at all, private, and never guessed when it cannot be read."""

from __future__ import annotations

from pathlib import Path

import pytest

from client.state.privacy_ledger import LedgerFile
from dynammo_core.privacy.accounting import Charge, site_epsilon
from dynammo_core.support.errors import CheckpointError

CHARGES = (Charge(0, "census", 0, 4.0, 1.0, 1, (0, 1)), Charge(1, "adapt", 2, 1.5, 0.25, 8, (0, 1, 2)))


def test_what_is_entered_is_read_again(tmp_path: Path) -> None:
    file = LedgerFile(tmp_path / "run")
    assert file.read().epsilon(1e-5) == 0
    with file.changing() as ledger:
        ledger.charges |= {"one": CHARGES[0], "two": CHARGES[1]}
        ledger.census |= {0: 12, 1: 0}
    again = LedgerFile(tmp_path / "run").read()
    assert (again.charges, again.census) == ({"one": CHARGES[0], "two": CHARGES[1]}, {0: 12, 1: 0})
    assert again.epsilon(1e-5) == site_epsilon(CHARGES, 1e-5)
    assert again.epsilon(1e-5, CHARGES[1]) == site_epsilon((*CHARGES, CHARGES[1]), 1e-5) > again.epsilon(1e-5)
    assert file.path.stat().st_mode & 0o777 == 0o600


def test_a_change_that_fails_leaves_the_ledger_as_it_was(tmp_path: Path) -> None:
    file = LedgerFile(tmp_path)
    with file.changing() as ledger:
        ledger.charges["one"] = CHARGES[0]
    with pytest.raises(RuntimeError), file.changing() as ledger:
        ledger.charges["two"] = CHARGES[1]
        raise RuntimeError("cut off")
    assert set(file.read().charges) == {"one"}


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"charges": {"a": {}}, "census": {}}', '{"charges": 3, "census": 4}']
)
def test_a_damaged_ledger_is_refused(tmp_path: Path, text: str) -> None:
    file = LedgerFile(tmp_path)
    file.path.write_text(text)
    with pytest.raises(CheckpointError, match=r"privacy ledger .* cannot be read .* cannot answer in this run"):
        file.read()
