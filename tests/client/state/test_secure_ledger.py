"""What a site keeps of secure aggregation: one secret, and the promise not to tell two things that tell a third."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from client.state.secure_ledger import LEDGER_FILE, SecureLedger
from dynammo_core.support.errors import MemoryStoreError, ProtocolError
from dynammo_core.wire.secure_aggregation.masking import KEY_BYTES, Context

FIRST, SECOND = (Context("run", 3, bytes([attempt]) * 16) for attempt in (1, 2))
ROSTER = {site: bytes([site]) * 64 for site in range(4)}
FEWER = {site: ROSTER[site] for site in range(3)}


@pytest.fixture
def ledger(tmp_path: Path) -> SecureLedger:
    return SecureLedger(tmp_path / "site")


def test_the_secret_is_drawn_once_and_for_its_owner_alone(ledger: SecureLedger) -> None:
    secret = ledger.secret()
    assert len(secret) == KEY_BYTES
    assert SecureLedger(ledger.path.parent).secret() == secret
    assert ledger.path.stat().st_mode & 0o777 == 0o600
    assert ledger.path.parent.stat().st_mode & 0o777 == 0o700
    assert SecureLedger(ledger.path.parent / "other").secret() != secret


def test_the_same_may_be_told_again(ledger: SecureLedger) -> None:
    for _ in range(2):
        ledger.mask(FIRST, ROSTER)
        ledger.open(FIRST, ROSTER, [0, 1, 2])


def test_one_attempt_has_one_set_of_masks(ledger: SecureLedger) -> None:
    ledger.mask(FIRST, ROSTER)
    with pytest.raises(ProtocolError, match="the set of sites changed"):
        ledger.mask(FIRST, FEWER)
    with pytest.raises(ProtocolError, match="the set of sites changed"):
        ledger.mask(FIRST, {**ROSTER, 3: b"x" * 64})
    ledger.mask(SECOND, FEWER)


def test_an_attempt_has_one_set_of_masks_whatever_was_asked_in_between(ledger: SecureLedger) -> None:
    """The difference of two vectors of one attempt is a mask between two sites; all of them bare the vector."""
    ledger.mask(FIRST, ROSTER)
    ledger.mask(SECOND, ROSTER)
    with pytest.raises(ProtocolError, match="the set of sites changed"):
        ledger.mask(FIRST, FEWER)
    ledger.mask(FIRST, ROSTER)


def test_a_step_is_opened_for_one_set_of_survivors(ledger: SecureLedger) -> None:
    """In the same attempt, both shares of site 2 would leave; in the next, the two sums would differ by its vector."""
    ledger.mask(FIRST, ROSTER)
    ledger.open(FIRST, ROSTER, [0, 1, 2])
    with pytest.raises(ProtocolError, match="opened for other sites"):
        ledger.open(FIRST, ROSTER, [0, 1, 3])
    ledger.mask(SECOND, FEWER)
    with pytest.raises(ProtocolError, match="opened for other sites"):
        ledger.open(SECOND, FEWER, [0, 1])
    ledger.open(SECOND, FEWER, [0, 1, 2])
    other = Context("run", 4, FIRST.attempt)
    ledger.mask(other, ROSTER)
    ledger.open(other, ROSTER, [0, 1])


def test_nothing_is_opened_but_for_a_vector_that_was_sent(ledger: SecureLedger) -> None:
    with pytest.raises(ProtocolError, match="did not send a vector"):
        ledger.open(FIRST, ROSTER, [0, 1, 2])
    ledger.mask(FIRST, ROSTER)
    for context, roster in ((FIRST, FEWER), (SECOND, ROSTER)):
        with pytest.raises(ProtocolError, match="did not send a vector"):
            ledger.open(context, roster, [0, 1, 2])
    ledger.mask(SECOND, ROSTER)
    with pytest.raises(ProtocolError, match="did not send a vector"):
        ledger.open(FIRST, ROSTER, [0, 1, 2])  # an attempt that was given up


def test_a_refusal_leaves_the_file_as_it_was(ledger: SecureLedger) -> None:
    ledger.mask(FIRST, ROSTER)
    before = ledger.path.read_bytes()
    with pytest.raises(ProtocolError):
        ledger.mask(FIRST, FEWER)
    assert ledger.path.read_bytes() == before


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"secret": "ab"}', '{"secret": 5}', '{"secret": "x", "more": 1}'])
def test_a_damaged_file_is_refused_and_stays(ledger: SecureLedger, content: str) -> None:
    ledger.path.parent.mkdir()
    ledger.path.write_text(content)
    with pytest.raises(MemoryStoreError, match=LEDGER_FILE):
        ledger.secret()
    assert ledger.path.read_text() == content


def test_who_deletes_it_lets_the_step_be_opened_anew(ledger: SecureLedger) -> None:
    ledger.mask(FIRST, ROSTER)
    ledger.open(FIRST, ROSTER, [0, 1, 2])
    secret = ledger.secret()
    ledger.path.unlink()
    ledger.mask(SECOND, FEWER)
    ledger.open(SECOND, FEWER, [0, 1])
    assert ledger.secret() != secret
    assert set(json.loads(ledger.path.read_bytes())) == {"secret", "masked", "rosters", "opened"}
