"""What an operator is told to ask at a site that failed."""

from __future__ import annotations

from dynammo_core.support.errors import DynammoError, RunError
from server.run_directory.advice import BY_CODE, DEFECT, GONE, failure_words, what_to_ask

START = {"name": "digits", "approval": "0123456789abcdef" * 4, "site_names": ["mercy", "county", "north"]}
NOBODY = (
    "nobody there has approved digits (hash 0123456789abcdef), or not for another run: "
    "they type `dynammo-site approve`, or what `start` shows"
)


def test_every_error_of_a_site_has_words_of_its_own() -> None:
    raised_at_sites = {error.code for error in DynammoError.__subclasses__()} - {RunError.code}
    assert set(BY_CODE) == raised_at_sites
    for code, error, ask in ((199, "KeyError", DEFECT), (5, "Error", GONE), (0, "Restarted", "it restarted")):
        assert what_to_ask({"code": code, "error": error}).startswith(ask)


def test_sites_with_one_failure_share_a_sentence() -> None:
    missing = {"code": 108, "error": "NotApproved"}
    failures = [{"site": 0, **missing}, {"site": 2, **missing}, {"site": 1, "code": 0, "error": "NotConnected"}]
    failed = {"message": "0 of 3 sites answered, 3 are needed.", "failures": failures}
    assert failure_words(START, failed) == (
        f"0 of 3 sites answered, 3 are needed. mercy, north (NotApproved, code 108): {NOBODY}. "
        "county (NotConnected, code 0): it is not connected: ask whether `dynammo-site start` is running."
    )


def test_in_a_simulation_nobody_is_asked() -> None:
    assert failure_words({}, {"message": "the disk is full"}) == "the disk is full"  # as an earlier version wrote it
    failed = {"message": "it failed.", "failures": [{"site": 7, "code": 102, "error": "DataError"}]}
    assert failure_words({"name": "digits", "approval": None}, failed) == "it failed. site 7 (DataError, code 102)."
