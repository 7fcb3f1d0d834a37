"""A site in secure aggregation: what it answers, what it refuses whoever asks, and what its audit log says."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hospitals import deployed, make_hospitals
from small_runs import Outcome, instruction, run_small, small_config, small_site, step_of
from torch import Tensor

from client.consent.audit import AuditLog
from client.consent.settings import load_site
from client.hospital.door import declared, let_out
from client.state.secure_ledger import LEDGER_FILE
from client.steps.actions import answer
from client.steps.secure_answers import secure_answer
from dynammo_core.experiment import Experiment
from dynammo_core.support.errors import ProtocolError
from dynammo_core.wire.envelope import encode_report
from dynammo_core.wire.protocol import Instruction, Phase
from dynammo_core.wire.secure_aggregation.phases import ATTEMPT, KEYS, PHASE_UP, SHARES, SITES, SURVIVORS

SECURE = {"federation.secure_aggregation": True, "federation.sites": 5, "federation.partition": "iid"}
EXPERIMENT = Experiment(small_config("streaming_ridge", SECURE))  # threshold: 4 of 5
STEP = step_of(EXPERIMENT, 0, "sum")
START = {ATTEMPT: torch.frombuffer(bytearray(os.urandom(16)), dtype=torch.uint8)}


class Consortium:
    """Five sites and the messages between them, as a server that follows the protocol would carry them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.keys = {site: self.ask(Phase.KEYS, site, START) for site in range(5)}
        self.roster = self.rostered(range(5))
        self.shares = {site: self.ask(Phase.SHARES, site, self.roster) for site in range(5)}

    def rostered(self, sites: Any) -> dict[str, Tensor]:
        keys = torch.stack([self.keys[site] for site in sites])
        return START | {SITES: torch.tensor(list(sites)), KEYS: keys}

    def ask(self, phase: Phase, site: int, weights: dict[str, Tensor], **changes: Any) -> Tensor:
        sent = replace(self.sent(site), **({"weights": self.meant(phase, site, weights)} | changes))
        report = secure_answer(phase, sent, small_site(EXPERIMENT, site, self.folder))
        return report.weights[PHASE_UP[phase]]

    def meant(self, phase: Phase, site: int, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of an exchange, and in the one for which a site computes what it needs for that."""
        return {**self.sent(site).weights, **weights} if phase is Phase.MASKED else weights

    def sent(self, site: int) -> Instruction:
        return instruction(EXPERIMENT, STEP, site, self.folder)

    def opening(self, survivors: list[int], site: int = 0) -> dict[str, Tensor]:
        dealt = torch.stack([self.shares[dealer][site] for dealer in range(5)])
        return self.roster | {SHARES: dealt, SURVIVORS: torch.tensor(survivors)}


@pytest.fixture
def five(tmp_path: Path) -> Consortium:
    return Consortium(tmp_path)


def refused(five: Consortium, phase: Phase, weights: dict[str, Tensor], **changes: Any) -> str:
    with pytest.raises(ProtocolError) as caught:
        five.ask(phase, 0, weights, **changes)
    return str(caught.value)


def test_asked_again_a_site_answers_the_same(five: Consortium) -> None:
    again = Consortium(five.folder)
    assert all(torch.equal(five.keys[site], again.keys[site]) for site in range(5))
    assert all(torch.equal(five.shares[site], again.shares[site]) for site in range(5))
    first, second = (five.ask(Phase.MASKED, 0, five.roster) for _ in "ab")
    assert torch.equal(first, second)
    assert torch.equal(*(five.ask(Phase.OPEN, 0, five.opening([0, 1, 2, 4])) for _ in "ab"))
    assert (five.folder / "site-000" / LEDGER_FILE).stat().st_mode & 0o777 == 0o600


def test_both_shares_of_one_peer_never_leave_in_one_attempt(five: Consortium) -> None:
    five.ask(Phase.MASKED, 0, five.roster)
    five.ask(Phase.OPEN, 0, five.opening([0, 1, 2, 3, 4]))
    assert "opened for other sites" in refused(five, Phase.OPEN, five.opening([0, 1, 2, 3]))


@pytest.mark.parametrize(
    ("survivors", "message"),
    [
        ([0, 1, 2], "3 sites are too few. Accepted: 4 or more"),
        ([1, 2, 3, 4], "asked to open a sum without its own vector"),
        ([0, 2, 1, 3], "not ascending numbers of the step's sites"),
        ([0, 1, 1, 2, 3], "not ascending numbers of the step's sites"),
        ([0, 1, 2, 7], "not ascending numbers of the step's sites"),
    ],
)
def test_sets_that_would_tell_more_are_not_opened(five: Consortium, survivors: list[int], message: str) -> None:
    five.ask(Phase.MASKED, 0, five.roster)
    assert message in refused(five, Phase.OPEN, five.opening(survivors))


def test_before_its_vector_has_left_a_site_opens_nothing(five: Consortium) -> None:
    assert "did not send a vector" in refused(five, Phase.OPEN, five.opening([0, 1, 2, 3]))


@pytest.mark.parametrize("phase", [Phase.SHARES, Phase.MASKED])
def test_too_few_or_false_keys_are_refused(five: Consortium, phase: Phase) -> None:
    assert "3 sites are too few" in refused(five, phase, five.rostered([0, 1, 2]))
    assert "not those of this site" in refused(five, phase, five.rostered([1, 2, 3, 4]))
    twice = five.roster[KEYS].clone()
    twice[2] = twice[1]
    assert "two sites sent the same keys" in refused(five, phase, five.roster | {KEYS: twice})
    strange = five.roster[KEYS].clone()
    strange[2] = 0  # agrees with every key on the same secret
    assert f"the exchange {phase.value!r} cannot be answered" in refused(five, phase, five.roster | {KEYS: strange})
    foreign = START | {ATTEMPT: START[ATTEMPT] ^ 1}
    assert "not those of this site in this attempt" in refused(five, phase, five.roster | foreign)


def test_shares_that_were_changed_on_the_way_are_refused(five: Consortium) -> None:
    five.ask(Phase.MASKED, 0, five.roster)
    changed = five.opening([0, 1, 2, 3])
    changed[SHARES] = changed[SHARES].flip(0)
    assert "are not the shares that site" in refused(five, Phase.OPEN, changed)


@pytest.mark.parametrize("phase", Phase)
def test_tensors_that_are_not_declared_or_lack_are_refused(five: Consortium, phase: Phase) -> None:
    right = {Phase.KEYS: START, Phase.OPEN: five.opening([0, 1, 2, 3])}.get(phase, five.roster)
    for name in right:
        assert name in refused(five, phase, {other: right[other] for other in right if other != name})
        assert name in refused(five, phase, right | {name: right[name].float()}) or name == SURVIVORS
    assert refused(five, phase, right | {"images": torch.zeros(3)})
    assert "too few" in refused(five, phase, right | {SITES: torch.tensor([0])}) or phase is Phase.KEYS


def test_a_step_of_which_nothing_is_summed_has_no_exchanges(five: Consortium, tmp_path: Path) -> None:
    plain = Experiment(small_config("streaming_ridge", {**SECURE, "federation.secure_aggregation": False}))
    with pytest.raises(ProtocolError, match="does not use secure aggregation"):
        secure_answer(Phase.KEYS, five.sent(0), small_site(plain, 0, tmp_path))
    assert "step 1000 is not a step" in refused(five, Phase.KEYS, START, step=1000)
    remembering = Experiment(small_config("ridge", SECURE))
    step = step_of(remembering, 0, "remember")
    with pytest.raises(ProtocolError, match="is not a step whose answers are summed"):
        secure_answer(Phase.KEYS, instruction(remembering, step, 0, tmp_path), small_site(remembering, 0, tmp_path))
    report = answer(instruction(remembering, step, 0, tmp_path), small_site(remembering, 0, tmp_path))
    assert set(report.numbers) == {"seconds"}  # how many exemplars of what is nobody's business


@pytest.mark.parametrize("phase", Phase)
def test_the_door_lets_nothing_out_beside_what_an_exchange_declares(five: Consortium, phase: Phase) -> None:
    weights = {Phase.KEYS: START, Phase.OPEN: five.opening([0, 1, 2, 3])}.get(phase, five.roster)
    five.ask(Phase.MASKED, 0, five.roster)
    site, name = small_site(EXPERIMENT, 0, five.folder), PHASE_UP[phase]
    report = secure_answer(phase, replace(five.sent(0), weights=five.meant(phase, 0, weights)), site)
    form = declared(site, STEP, phase, len(weights.get(SITES, ())))
    let_out(encode_report(report, form.tensors), form)
    tensor = report.weights[name]
    for changed in (
        replace(report, numbers={**report.numbers, "class_counts": [1] * EXPERIMENT.classes}),
        replace(report, numbers={**report.numbers, "loss": 0.5}),
        replace(report, abstained=True),
        replace(report, weights={name: torch.cat([tensor, tensor])}),
        replace(report, weights={name: tensor.double()}),
        replace(report, weights={}),
    ):
        with pytest.raises(ProtocolError):
            let_out(encode_report(changed, form.tensors), form)


def test_deployed_sites_take_part_and_record_what_left(tmp_path: Path) -> None:
    held = {"alpha": {"0": 5, "1": 4}, "beta": {"0": 4, "1": 5}, "gamma": {"0": 3, "1": 3}}
    hospitals = make_hospitals(tmp_path, held)
    classes = ["0", "1"]
    runs = {
        secure: run_small(
            deployed(list(held), classes, sections={"federation": {"secure_aggregation": secure}}),
            tmp_path / str(secure),
            grid=hospitals,
        ).path
        for secure in (False, True)
    }
    plain, secure = (Outcome.of(runs[on]).summary["accuracy_after_tasks"] for on in (False, True))
    assert plain == secure
    entries = [entry.fields for entry in AuditLog(load_site(hospitals.files["alpha"]).audit).read().entries]
    name = next(entry["run"] for entry in reversed(entries) if "run" in entry)
    mine = [entry for entry in entries if entry.get("run") == name]
    (memory,) = [entry for entry in mine if entry["event"] == "memory"]
    # What stays at the site is still told to the site: its third of 24 exemplars, shared among two classes.
    assert memory["exemplars"] == {"0": 4, "1": 4}
    answered = [entry for entry in mine if entry["event"] == "answered"]
    exchanges = [entry.get("exchange") for entry in answered if entry["stage"] == "train"]
    assert exchanges == [phase.value for phase in Phase] * 2  # two rounds
    assert {str(entry["class_counts"]) for entry in answered} == {"None"}
    assert {name for entry in answered for name in entry["numbers"]} == {"seconds"}
    masked = next(entry for entry in answered if entry.get("exchange") == "masked")
    assert masked["bytes"] % 8 == 0
    assert masked["tensors"]["secure.masked"]["count"] == 1
