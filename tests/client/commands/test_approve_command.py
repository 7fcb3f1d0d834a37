"""`dynammo-site approve`: what a person is shown, what it may answer, and what comes of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from click.testing import Result
from hospitals import deployed, make_hospital
from small_runs import instruction
from typer.testing import CliRunner

from client.commands.approve import approve
from client.consent import approvals as module
from client.consent.approvals import DECISIONS, Approvals, Proposal
from client.consent.approved_runs import ApprovedRuns
from client.consent.settings import load_site
from client.hospital.hospital import Hospital, Request
from dynammo_core.code_identity import project_hash
from dynammo_core.configuration.config import Config
from dynammo_core.experiment import Experiment
from dynammo_core.support.errors import DynammoError, NotApproved
from dynammo_core.wire.announcement import with_new_task
from server.run_directory.lineage import with_sites

app = typer.Typer()
app.command()(approve)
CONFIG = deployed(["alpha", "beta"], ["normal", "effusion", "mass", "nodule"], "dynammo")


@pytest.fixture
def alpha(tmp_path: Path) -> Path:
    return make_hospital(tmp_path, "alpha", tmp_path)


def ask(site_yaml: Path, config: Config[Any] = CONFIG) -> None:
    """An instruction of an experiment comes."""
    sent = instruction(Experiment(config), Experiment(config).steps[0], 0, Path("/server"))
    Hospital(site_yaml).admit(Request(sent, {}))


def called(site_yaml: Path, *words: str, answers: str = "") -> Result:
    return CliRunner().invoke(app, [str(site_yaml), *words], input=answers)


def waiting(site_yaml: Path) -> list[str]:
    return [proposal.id for proposal in Approvals(load_site(site_yaml).approvals).waiting()]


def propose(site_yaml: Path, config: Config[Any] = CONFIG) -> str:
    with pytest.raises(DynammoError):
        ask(site_yaml, config)
    return Proposal.of(config).id


def test_a_person_sees_what_would_run_and_what_of_it_leaves(alpha: Path) -> None:
    id_ = propose(alpha)
    result = called(alpha, answers="later\n")
    assert result.exit_code == 0, result.output
    for words in (
        id_,
        f"code         {project_hash()}",
        f"experiment   {CONFIG.content_hash}",
        "method       dynammo, 6 rounds of training in all",  # a round of adapt and two of balance, twice
        "sites        alpha (NEW), beta (NEW)",
        "task 1       normal (NEW), effusion (NEW)",
        "tensors: extractor.*adapters.*, heads.auxiliary.*",
        "numbers: class_counts, loss, seconds",
        "numbers: calibration, class_counts, confusion, open_set, seconds",
        "no differential privacy",
        "Nothing was approved before. The whole experiment:",
        "+method:",
    ):
        assert words in result.output
    assert waiting(alpha) == [id_]


def test_of_an_extended_experiment_it_sees_what_is_new(alpha: Path) -> None:
    id_ = propose(alpha)
    assert called(alpha, "--yes", id_[:8]).exit_code == 0
    grown = propose(alpha, with_sites(with_new_task(CONFIG, ["pneumothorax"]), ["gamma"]))
    output = called(alpha, answers="approve\n").output
    assert "task 1       normal, effusion\n" in output
    assert "task 3       pneumothorax (NEW)\n" in output
    assert "sites        alpha, beta, gamma (NEW)\n" in output
    assert f"--- approved, {id_[:16]}" in output
    assert f"+++ proposed, {grown[:16]}" in output
    changed = [line.strip() for line in output.splitlines() if line.lstrip().startswith(("+", "-"))][2:]
    assert {"+  - pneumothorax", "+  - gamma", "-  sites: 2", "+  sites: 3"} <= set(changed)
    assert not [line for line in changed if "code" in line or "rounds" in line]
    assert waiting(alpha) == []
    ask(alpha, with_sites(with_new_task(CONFIG, ["pneumothorax"]), ["gamma"]))


def test_another_version_of_the_code_is_a_difference(alpha: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    propose(alpha)
    called(alpha, answers="approve\n")
    monkeypatch.setattr(module, "code_hash", lambda *_: "f" * 64)
    propose(alpha)
    output = called(alpha, answers="reject\n").output
    assert f"-code: {project_hash()}" in output
    assert f"+code: {'f' * 64}" in output
    assert "NOT the code installed here" in output
    with pytest.raises(NotApproved, match="was rejected"):
        ask(alpha)


@pytest.mark.parametrize(
    ("answers", "verdict"),
    [("approve\n", "approved"), ("reject\n", "rejected"), ("\n", "waiting"), ("y\nwhat\napprove\n", "approved")],
)
def test_the_answer_decides_and_another_one_is_asked_for_again(alpha: Path, answers: str, verdict: str) -> None:
    id_ = propose(alpha)
    assert called(alpha, "--by", "Dr. Who", answers=answers).exit_code == 0
    listed = called(alpha, "--list").output
    who = {"waiting": "", "approved": " for 1 run (0 answered) by Dr. Who"}.get(verdict, " by Dr. Who")
    assert listed.split() == f"{id_[:16]} {verdict}{who} small".split()


def test_without_an_answer_nothing_is_approved(alpha: Path) -> None:
    id_ = propose(alpha)
    assert called(alpha).exit_code == 1
    assert waiting(alpha) == [id_]
    called(alpha, answers="reject\n")
    assert "No experiment is waiting" in called(alpha).output


def test_an_approval_in_advance_is_for_what_comes(alpha: Path, tmp_path: Path) -> None:
    """The operator sends the file by mail, with the places of his own machine in it."""
    mail = tmp_path / "chest.yaml"
    mail.write_text(CONFIG.to_yaml().replace("root: null", "root: /srv/of/the/operator"))
    result = called(alpha, "--config", str(mail), answers="approve\n")
    assert result.exit_code == 0, result.output
    ask(alpha)
    assert "No experiment is waiting" in called(alpha).output
    id_ = Proposal.of(CONFIG).id
    assert called(alpha, "--revoke", id_[:12]).exit_code == 0
    with pytest.raises(NotApproved, match="was revoked"):
        ask(alpha)
    assert called(alpha, "--config", str(mail), "--yes", id_).exit_code == 0
    ask(alpha)


def test_what_the_policy_forbids_is_shown_and_cannot_be_approved(alpha: Path) -> None:
    (alpha.parent / "policy.yaml").write_text("most_tasks: 1\n")
    id_ = propose(alpha)
    result = called(alpha, answers="approve\n")
    assert (result.exit_code, "later?" in result.output) == (0, False)  # nobody is asked
    assert f"FORBIDDEN by {alpha.parent / 'policy.yaml'}: 2 tasks are more than 1" in result.output
    assert waiting(alpha) == [id_]
    refused = called(alpha, "--yes", id_)
    assert refused.exit_code == 1
    assert "2 tasks are more than 1" in refused.stderr
    assert waiting(alpha) == [id_]


def test_as_json_all_is_told_for_a_program(alpha: Path) -> None:
    id_ = propose(alpha)
    (told,) = json.loads(called(alpha, "--json").output)
    assert told["backbone"] == "small_cnn, weights drawn at random"
    assert (told["proposal"], told["state"], told["new_classes"]) == (id_, "waiting", list(CONFIG.data.classes or ()))
    assert [stage["stage"] for stage in told["stages"]] == ["adapt", "recalibrate", "balance", "remember", "evaluate"]
    assert told["stages"][1]["tensors"] == ["extractor.*adapters.*.running_*"]
    called(alpha, "--yes", id_)
    assert json.loads(called(alpha, "--json").output) == []
    assert [each["state"] for each in json.loads(called(alpha, "--json", "--list").output)] == ["approved"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--yes", "0123456789"], "no proposals have a hash that begins with '0123456789'"),
        (["--yes", ""], "no proposals"),
        (["--yes", "aa", "--reject", "bb"], "more than one decision was given"),
        (["--config", "no.yaml"], "no configuration file 'no.yaml'"),
    ],
)
def test_a_wrong_word_is_refused_in_one_paragraph(alpha: Path, words: list[str], said: str) -> None:
    propose(alpha)
    result = called(alpha, *words)
    assert (result.exit_code, result.exception.__class__) == (1, SystemExit)
    assert said in result.stderr


def test_the_hash_of_the_experiment_leads_to_that_of_its_proposal(alpha: Path) -> None:
    id_ = propose(alpha)
    result = called(alpha, "--yes", CONFIG.content_hash[:8])
    assert result.exit_code == 1 and waiting(alpha) == [id_]
    assert f"it is the hash of the experiment in the proposal {id_[:16]}. Accepted: {id_[:16]}" in result.stderr


def test_an_approval_that_covers_no_further_run_says_what_does(alpha: Path) -> None:
    id_ = propose(alpha)
    assert "no other run" not in called(alpha, "--yes", id_).output
    approvals = Approvals(load_site(alpha).approvals)
    ApprovedRuns(approvals).count(Proposal.of(CONFIG), "small-1", lambda _: False)
    again = called(alpha, "--yes", id_).output
    assert (
        f"1 of 1 had answers of this site (small-1); another one needs `dynammo-site approve --yes {id_[:16]}" in again
    )
    assert "--runs 2`" in again and "(1 answered)" in called(alpha, "--list").output
    assert "no other run" not in called(alpha, "--yes", id_, "--runs", "2").output


def test_a_short_hash_is_not_enough(alpha: Path) -> None:
    id_ = propose(alpha)
    assert called(alpha, "--yes", id_[:7]).exit_code == 1
    assert waiting(alpha) == [id_]


def test_decisions_that_the_audit_log_contradicts_are_named_until_somebody_decides_anew(alpha: Path) -> None:
    id_ = propose(alpha)
    called(alpha, "--yes", id_)
    path = load_site(alpha).approvals / DECISIONS
    before = path.read_bytes()
    called(alpha, "--revoke", id_)
    path.write_bytes(before)
    result = called(alpha, "--list")
    assert result.exit_code == 1
    assert f"{id_[:16]} is approved, but revoked in the audit log" in result.stderr
    assert called(alpha, "--revoke", id_).exit_code == 0
    assert called(alpha, "--list").exit_code == 0
