"""A server that asks a site more than the plan needs: other weights, before and after a withdrawal, run after run."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Message
from hospitals import Hospitals, deployed, make_hospital, make_hospitals, with_images
from small_runs import instruction, records, run_small, step_of
from torch import Tensor

from client.consent.approvals import Proposal
from client.consent.settings import load_site
from client.hospital.admission import approve_proposal
from client.state.withdrawal import WithdrawalLedger
from dynammo_core.configuration.config import Config
from dynammo_core.experiment import Experiment
from dynammo_core.support.errors import AnsweredBefore, DataError, NotApproved, PolicyError, ProtocolError, RunError
from dynammo_core.wire.envelope import MESSAGE_TYPES
from dynammo_core.wire.protocol import Instruction

HELD = {"0": 12, "1": 12, "2": 12, "3": 12}
CONFIG = deployed(["alpha"], ["0", "1", "2", "3"], "streaming_ridge", {"tasks": {"sizes": [2, 2]}})
EXPERIMENT = Experiment(CONFIG)
PRODUCTS = "heads.classes.products"


@dataclass
class Attack:
    """A server with one hospital, whose people approved its experiment, with the default policy."""

    folder: Path
    run: str = "first"

    @classmethod
    def on(cls, folder: Path, runs: int = 1, config: Config[Any] = CONFIG) -> Attack:
        site_yaml = make_hospital(folder / "alpha", "alpha", with_images(folder, "alpha", HELD))
        (site_yaml.parent / "policy.yaml").write_text("fewest_images: 5\n")
        approve_proposal(load_site(site_yaml), Proposal.of(config), "engineer", runs)
        return cls(folder)

    @property
    def site_yaml(self) -> Path:
        return self.folder / "alpha" / "site.yaml"

    def asked(self, task: int, stage: str, **changes: Any) -> Instruction:
        sent = instruction(EXPERIMENT, step_of(EXPERIMENT, task, stage), 0, self.folder)
        return replace(sent, run=self.run, **changes)

    def correcting(self, number: int, taken: list[int]) -> Instruction:
        stage = EXPERIMENT.correction_stage(1)
        assert stage is not None
        sent = instruction(EXPERIMENT, replace(EXPERIMENT.steps[-1], stage=stage, round=number), 0, self.folder)
        return replace(sent, run=self.run, correction=number, corrected=number - 1, taken=taken)

    def send(self, sent: Instruction) -> Message:
        hospitals = Hospitals({"alpha": self.site_yaml})
        hospitals.careful = True
        action = EXPERIMENT.step(sent.step, sent.correction).stage.action
        message = Message(records(sent), hospitals.get_node_ids()[0], MESSAGE_TYPES[action], ttl=60.0)
        (reply,) = hospitals.send_and_receive([message], timeout=60)
        return reply

    def answer(self, sent: Instruction) -> dict[str, Tensor]:
        reply = self.send(sent)
        assert not reply.has_error(), reply.error
        arrays = reply.content.array_records["weights"]
        return {name: torch.from_numpy(array.numpy().copy()) for name, array in arrays.items()}

    def refusal(self, sent: Instruction) -> tuple[int, str]:
        reply = self.send(sent)
        assert reply.has_error(), "the site answered"
        return reply.error.code, reply.error.reason

    def withdraw(self, *names: str) -> None:
        WithdrawalLedger(load_site(self.site_yaml).memory.folder).withdraw(names, "consent", date(2026, 3, 1))

    def audited(self, event: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in load_site(self.site_yaml).audit.read_text().splitlines()]
        return [line for line in lines if line["event"] == event]

    @property
    def sums(self) -> list[int]:
        """The contributions of the two tasks."""
        return [step_of(EXPERIMENT, task, "sum").index for task in (0, 1)]


def names(label: int, count: int, start: int = 0) -> list[str]:
    return [f"alpha-{label}-{position}.png" for position in range(start, start + count)]


def error(kind: type[Any]) -> tuple[int, str]:
    return kind.code, kind.__name__


# --- one step, one set of weights


def probing(sent: Instruction, at: int) -> Instruction:
    """A classifier whose answers tell the sign of one feature: some hundred of them tell a whole feature vector."""
    weights = {name: tensor.clone() for name, tensor in sent.weights.items()}
    name = next(name for name in weights if name.endswith(".weight"))
    weights[name].zero_()
    weights[name][0, at % weights[name].shape[1]] = 1.0
    return replace(sent, weights=weights)


def test_a_test_is_answered_for_one_model_and_for_no_other(tmp_path: Path) -> None:
    attack = Attack.on(tmp_path)
    first = attack.asked(1, "evaluate")
    assert not attack.send(first).has_error()
    assert [attack.refusal(probing(first, at)) for at in range(5)] == [error(AnsweredBefore)] * 5
    assert len(attack.audited("answered")) == 1
    refused = attack.audited("refused")
    assert [line["code"] for line in refused] == [AnsweredBefore.code] * 5
    assert "already answered, for other weights" in refused[0]["text"]


@pytest.mark.parametrize("stage", ["sum", "evaluate"])
def test_the_same_question_gets_the_recorded_answer(tmp_path: Path, stage: str) -> None:
    """After the images have changed too: what is given is what was given, and its line says so."""
    attack = Attack.on(tmp_path)
    sent = attack.asked(1, stage)
    first = attack.send(sent)
    with_images(tmp_path, "alpha", {**HELD, "2": 8, "3": 14})
    again = attack.send(sent)
    for kind in ("array_records", "metric_records", "config_records"):
        before, after = (dict(getattr(reply.content, kind)) for reply in (first, again))
        assert before == after  # the seconds that it took too
    assert [line.get("again", False) for line in attack.audited("answered")] == [False, True]


def test_words_that_decide_nothing_open_no_other_question(tmp_path: Path) -> None:
    """Places on the server's disk are no part of what is approved; a workspace is none of a question at all."""
    attack = Attack.on(tmp_path)
    sent = attack.asked(1, "evaluate")
    attack.answer(sent)
    plain = json.loads(sent.experiment)
    plain["data"]["root"] = "/elsewhere"
    other = probing(sent, 1)
    assert attack.refusal(replace(other, experiment=json.dumps(plain, sort_keys=True))) == error(AnsweredBefore)
    assert attack.refusal(replace(other, workspace="/elsewhere")) == error(AnsweredBefore)
    assert attack.refusal(replace(other, taken=[1])) == error(AnsweredBefore)
    plain["federation"]["quorum"] = 0.5
    assert attack.refusal(replace(other, experiment=json.dumps(plain, sort_keys=True))) == error(NotApproved)


def test_corrections_do_not_open_questions_without_end(tmp_path: Path) -> None:
    attack = Attack.on(tmp_path)
    sent = attack.asked(1, "evaluate")
    attack.answer(sent)
    for corrected in range(1, 6):
        assert not attack.send(replace(probing(sent, corrected), corrected=corrected)).has_error()
    for corrected in (6, 7, 10**9, -1):
        assert attack.refusal(replace(probing(sent, 6), corrected=corrected)) == error(PolicyError)
    assert attack.refusal(attack.correcting(6, attack.sums)) == error(PolicyError)


def test_an_answer_that_had_to_go_is_not_computed_anew(tmp_path: Path) -> None:
    attack = Attack.on(tmp_path)
    text = attack.site_yaml.read_text()
    attack.site_yaml.write_text(f"{text}memory: {{answers_megabytes: 1}}\n")
    first, second = attack.asked(0, "sum"), attack.asked(1, "sum")
    size = sum(tensor.numel() * 8 for tensor in attack.answer(first).values())
    (file,) = attack.folder.glob("alpha/memory/**/answers/*.sealed")
    assert file.stat().st_size - size < 4096  # a few kilobytes beside what was answered
    os.utime(file, (0, 0))  # older than any setting allows
    attack.answer(second)
    assert file.stat().st_size < 4096
    assert attack.refusal(first) == error(AnsweredBefore)
    assert "dropped" in attack.audited("refused")[-1]["text"]
    assert attack.answer(second)


# --- before and after a withdrawal


def test_a_sum_asked_before_and_after_a_purge_tells_nothing_of_the_record(tmp_path: Path) -> None:
    attack = Attack.on(tmp_path)
    sent = attack.asked(0, "sum")
    before = attack.answer(sent)
    attack.withdraw(*names(0, 1))
    after = attack.answer(sent)
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("withdrawn", [1, 4, 5])
def test_a_sum_in_another_run_differs_by_no_few_images(tmp_path: Path, withdrawn: int) -> None:
    """With one image less than before, others stay away with it."""
    attack = Attack.on(tmp_path, runs=2)
    before = attack.answer(attack.asked(0, "sum"))
    attack.withdraw(*names(0, withdrawn))
    attack.run = "second"
    after = attack.answer(attack.asked(0, "sum"))
    lost = before[PRODUCTS][:, -1] - after[PRODUCTS][:, -1]
    assert lost.tolist() == [5, 0]


def test_new_images_that_are_few_wait_in_another_run(tmp_path: Path) -> None:
    attack = Attack.on(tmp_path, runs=3)
    before = attack.answer(attack.asked(0, "sum"))
    with_images(tmp_path, "alpha", {**HELD, "0": 13})
    attack.run = "second"
    after = attack.answer(attack.asked(0, "sum"))
    assert all(torch.equal(before[name], after[name]) for name in before)
    with_images(tmp_path, "alpha", {**HELD, "0": 17})
    attack.run = "third"
    assert (attack.answer(attack.asked(0, "sum"))[PRODUCTS][:, -1] - before[PRODUCTS][:, -1]).tolist() == [5, 0]


def test_a_correction_said_to_be_lost_is_repeated_and_no_more(tmp_path: Path) -> None:
    attack = Attack.on(tmp_path)
    for task in (0, 1):
        attack.answer(attack.asked(task, "sum"))
    attack.withdraw(*names(0, 5))
    taken = attack.sums
    first = attack.answer(attack.correcting(1, taken))
    attack.withdraw(*names(0, 1, start=5))
    again = attack.answer(attack.correcting(1, taken))
    assert all(torch.equal(first[name], again[name]) for name in first)
    second = attack.answer(attack.correcting(2, taken))  # which is told that the first one never came
    assert all(torch.equal(first[name], second[name]) for name in first)
    attack.withdraw(*names(0, 6, start=6))  # all that are left
    third = attack.answer(attack.correcting(3, taken))
    assert (first[PRODUCTS][:, -1] - third[PRODUCTS][:, -1]).tolist() == [7, 0, 0, 0]


def test_parts_of_the_sums_tell_no_more_than_the_whole(tmp_path: Path) -> None:
    """Contributions named twice, or one by one, leave nothing small behind."""
    attack = Attack.on(tmp_path)
    for task in (0, 1):
        attack.answer(attack.asked(task, "sum"))
    attack.withdraw(*names(0, 5), *names(2, 4))
    zero, one = attack.sums
    assert attack.refusal(attack.correcting(1, [zero, zero])) == error(ProtocolError)
    (gone,) = [attack.answer(attack.correcting(2, [zero]))[PRODUCTS][:, -1]]
    assert gone.tolist() == [-5, 0, 0, 0]
    reply = attack.send(attack.correcting(3, [one]))  # four are too few to go
    assert reply.content.config_records["report"]["abstained"] is True


def test_a_correction_in_one_run_leaves_no_less_than_another_run_has(tmp_path: Path) -> None:
    """Where the second run was begun in between, its sum and what is left of the first differ by one image."""
    attack = Attack.on(tmp_path, runs=2)
    attack.answer(attack.asked(0, "sum"))
    attack.withdraw(*names(0, 5))
    attack.run = "second"
    assert attack.answer(attack.asked(0, "sum"))[PRODUCTS][:, -1].tolist() == [7, 12]
    attack.withdraw(*names(0, 1, start=5))
    attack.run = "first"
    reply = attack.send(attack.correcting(1, [attack.sums[0]]))
    assert reply.content.config_records["report"]["abstained"] is True


# --- run after run


def test_an_approval_covers_one_run(tmp_path: Path) -> None:
    attack = Attack.on(tmp_path)
    attack.answer(attack.asked(0, "sum"))
    attack.answer(attack.asked(1, "sum"))
    attack.run = "second"
    assert attack.refusal(attack.asked(0, "sum")) == error(NotApproved)
    assert "approved for 1 run (first)" in attack.audited("refused")[-1]["text"]
    approve_proposal(load_site(attack.site_yaml), Proposal.of(CONFIG), "engineer", runs=2)
    attack.answer(attack.asked(0, "sum"))
    attack.answer(attack.asked(1, "sum"))
    attack.run = "third"
    assert attack.refusal(attack.asked(0, "sum")) == error(NotApproved)


def test_a_run_that_came_no_further_than_its_first_question_may_start_anew(tmp_path: Path) -> None:
    """Another site had not approved it yet; a question that differs is no new start."""
    attack = Attack.on(tmp_path)
    attack.answer(attack.asked(0, "sum"))
    attack.run = "second"
    assert attack.refusal(attack.asked(1, "sum")) == error(NotApproved)
    first = attack.asked(0, "sum")
    with_images(tmp_path, "alpha", {**HELD, "0": 3})  # what was answered is given again, and nothing computed
    assert attack.answer(first)[PRODUCTS][:, -1].tolist() == [12, 12]
    with_images(tmp_path, "alpha", HELD)
    attack.run = "first"
    assert attack.refusal(attack.asked(1, "sum")) == error(NotApproved)
    attack.run = "second"
    attack.answer(attack.asked(1, "sum"))


def test_a_run_that_failed_before_it_was_answered_uses_no_approval_up(tmp_path: Path) -> None:
    attack = Attack.on(tmp_path)
    damaged = tmp_path / "alpha" / "images" / names(0, 1)[0]
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:40])
    first = attack.asked(0, "sum")
    assert attack.refusal(first) == error(DataError)
    assert attack.refusal(replace(first, run="again")) == error(DataError)
    damaged.write_bytes(whole)
    assert not attack.send(replace(first, run="second")).has_error()
    for run in ("first", "again", "third"):  # those that failed have learnt nothing, and now they do not either
        assert attack.refusal(replace(attack.asked(1, "sum"), run=run)) == error(NotApproved)


def test_two_runs_under_secure_aggregation_open_the_same_sites(tmp_path: Path) -> None:
    """Five sites in the first, four of them in the second: the difference would be all that the fifth one sent."""
    held = {name: {"0": 3, "1": 3} for name in ("alpha", "beta", "gamma", "delta", "eta")}
    hospitals = make_hospitals(tmp_path, held)
    sections = {"federation": {"secure_aggregation": True, "attempts": 1, "quorum": 0.5}}
    config = deployed(list(held), ["0", "1"], "streaming_ridge", sections)
    run_small(config, tmp_path / "first", grid=hospitals)
    hospitals.away.add("eta")
    with pytest.raises(RunError, match=r"exchange 4 of 4 \(open\)"):
        run_small(config, tmp_path / "second", grid=hospitals)
    audit = [json.loads(line) for line in load_site(hospitals.files["alpha"]).audit.read_text().splitlines()]
    assert "another run of this experiment opened step" in audit[-1]["text"]
    hospitals.away.clear()
    run_small(config, tmp_path / "third", grid=hospitals)


def test_a_run_that_starts_anew_is_told_what_was_told_and_no_more(tmp_path: Path) -> None:
    """By a method of which no sums are kept: run after run, its first answers would differ by single images."""
    config = deployed(["alpha"], ["0", "1", "2", "3"], "replay", {"tasks": {"sizes": [2, 2]}})
    attack, experiment = Attack.on(tmp_path, config=config), Experiment(config)
    sent = instruction(experiment, experiment.steps[0], 0, tmp_path)
    answers = []
    for run in ("first", "second", "third"):
        hospitals = Hospitals({"alpha": attack.site_yaml})
        hospitals.careful = True
        node = hospitals.get_node_ids()[0]
        message = Message(records(replace(sent, run=run)), node, "train.fit", ttl=60.0)
        (reply,) = hospitals.send_and_receive([message], timeout=60)
        answers.append((reply.content.array_records["weights"], dict(reply.content.metric_records["numbers"])))
        attack.withdraw(*names(0, 1, start=len(answers)))
    assert answers[0] == answers[1] == answers[2]
    message = Message(records(replace(sent, run="third", corrected=1)), node, "train.fit", ttl=60.0)
    (reply,) = hospitals.send_and_receive([message], timeout=60)
    assert (reply.error.code, reply.error.reason) == error(RunError)  # it keeps no sums that could be corrected
