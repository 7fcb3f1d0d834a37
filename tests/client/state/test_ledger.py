"""The ledger on the disk: whole or not at all, private, and never guessed when it cannot be read."""

from __future__ import annotations

from pathlib import Path

import pytest

from client.state.privacy_ledger import (
    ANY_PATIENT,
    LedgerFile,
    NamedCharge,
    SiteLedger,
    spent_by_class,
    total_epsilon,
)
from dynammo_core.privacy.accounting import Charge, compose, site_epsilon
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


PATIENTS = (
    Charge(0, "census", 0, 4.0, 1.0, 1, (0, 1), "patient"),
    Charge(0, "adapt", 0, 1.5, 0.25, 8, (0, 1), "patient"),
    Charge(1, "adapt", 0, 1.5, 0.25, 8, (2,), "patient"),
)


def test_what_patients_are_charged_adds_up_over_runs_and_classes(tmp_path: Path) -> None:
    ledger = SiteLedger(tmp_path)
    with ledger.locked() as before:
        first = [NamedCharge.of(charge, "first", ("a", "b", "c")) for charge in PATIENTS]
        second = [NamedCharge.of(charge, "second", ("x", "y", "z")) for charge in PATIENTS]
        ledger.write([*before, *first, *second])
    expected = compose([*PATIENTS, *PATIENTS], 1e-5)
    assert spent_by_class(ledger.read(), 1e-5) == {ANY_PATIENT: expected}
    assert total_epsilon(ledger.read(), 1e-5) == expected


def test_where_images_were_protected_once_each_of_them_is_charged_for_both() -> None:
    """With one image less a patient's part of a sum may turn round: twice the sensitivity, whoever is drawn."""
    images = NamedCharge("first", 2.0, 0.5, 4, ("a",))
    patients = [NamedCharge.of(charge, "second", ("a", "b", "c")) for charge in PATIENTS]
    turned = [Charge(0, "", 0, 2.0, 1.0, 1, ()), Charge(0, "", 0, 0.75, 1.0, 16, ())]
    spent = spent_by_class([images, *patients], 1e-5)
    assert spent == {
        "a": compose([images, *turned], 1e-5),
        ANY_PATIENT: compose(PATIENTS, 1e-5),
    }


def test_ledgers_of_runs_are_carried_over_by_unit(tmp_path: Path) -> None:
    with LedgerFile(tmp_path / "runs" / "old").changing() as ledger:
        ledger.charges |= {str(number): charge for number, charge in enumerate(PATIENTS)}
    assert LedgerFile(tmp_path / "runs" / "old").read().epsilon(1e-5) == compose(PATIENTS, 1e-5)
    assert spent_by_class(SiteLedger(tmp_path).read(), 1e-5) == {ANY_PATIENT: compose(PATIENTS, 1e-5)}
