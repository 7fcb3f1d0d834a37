"""Nothing new runs on a real site's images before a person there approved it, and decisions cannot be edited."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message
from hospitals import Hospitals, deployed, make_hospital, make_hospitals, with_images
from small_runs import RUN, events, instruction, records, run_small, step_of

from client.consent import approvals as module
from client.consent.approvals import DECISIONS, MOST_WAITING, Approvals, Proposal
from client.consent.audit import AuditLog
from client.consent.settings import SiteSettings, load_site
from client.hospital.admission import approve_proposal
from client.hospital.hospital import Hospital, Request
from dynammo_core.configuration.config import Config, load_config
from dynammo_core.experiment import Experiment
from dynammo_core.support.errors import CheckpointError, ConfigError, NotApproved, PolicyError, RunError
from dynammo_core.wire.announcement import with_new_task
from server.run_directory.advice import failure_words
from server.run_directory.lineage import with_sites

HELD = {"0": 5, "1": 5, "3": 5}
CLASSES = ["3", "1", "0", "2"]
CONFIG = deployed(["beta", "alpha"], CLASSES)


@pytest.fixture
def alpha(tmp_path: Path) -> Path:
    return make_hospital(tmp_path / "alpha", "alpha", with_images(tmp_path, "alpha", HELD))


def ask(site_yaml: Path, config: Config[Any] = CONFIG, stage: str = "train", **changes: Any) -> Message:
    """What alpha answers to the first instruction of an experiment, where nobody approves by himself."""
    experiment = Experiment(config)
    sent = replace(instruction(experiment, step_of(experiment, 0, stage), 1, Path("/server")), **changes)
    content = records(sent)
    grid = Hospitals({"alpha": site_yaml})
    grid.careful = True
    (reply,) = grid.send_and_receive([Message(content, grid.get_node_ids()[0], "train.fit", ttl=60.0)], timeout=60)
    return reply


def refused(reply: Message) -> tuple[int, str]:
    return reply.error.code, reply.error.reason


def settled(site_yaml: Path) -> tuple[SiteSettings, Approvals]:
    settings = load_site(site_yaml)
    return settings, Approvals(settings.approvals)


def decide(site_yaml: Path, verdict: Any, config: Config[Any] = CONFIG) -> None:
    settings, approvals = settled(site_yaml)
    approvals.decide(Proposal.of(config), verdict, "Dr. Who", AuditLog(settings.audit))


def admitted(site_yaml: Path, config: Config[Any] = CONFIG) -> None:
    sent = instruction(Experiment(config), Experiment(config).steps[0], 1, Path("/server"))
    Hospital(site_yaml).admit(Request(sent, {}), datetime(2026, 1, 5, 12))


# --- what is refused, and what waits


def test_a_new_experiment_waits_and_nothing_is_read_before(alpha: Path) -> None:
    (alpha.parent / "images" / "manifest.csv").write_text("no manifest")
    before = sorted(path.name for path in alpha.parent.iterdir())
    assert refused(ask(alpha)) == (NotApproved.code, "NotApproved")
    made = {path.name for path in alpha.parent.iterdir()} - set(before)
    assert made == {"approvals", "audit.jsonl"}
    settings, approvals = settled(alpha)
    (proposal,) = approvals.waiting()
    assert proposal.config == CONFIG
    assert (proposal.run, proposal.id) == (RUN, Proposal.of(CONFIG).id)
    (file,) = settings.approvals.iterdir()
    assert (settings.approvals.stat().st_mode & 0o777, file.stat().st_mode & 0o777) == (0o700, 0o600)
    first = file.read_bytes()
    ask(alpha)
    assert [path.read_bytes() for path in settings.approvals.iterdir()] == [first]  # with the time it was first seen


def test_once_approved_it_runs_and_until_it_is_revoked(alpha: Path) -> None:
    settings, approvals = settled(alpha)
    approve_proposal(settings, Proposal.of(CONFIG), "Dr. Who")
    assert not ask(alpha).has_error()
    decide(alpha, "revoked")
    assert refused(ask(alpha)) == (NotApproved.code, "NotApproved")
    assert approvals.waiting() == []
    approve_proposal(settings, Proposal.of(CONFIG), "Dr. No")
    assert not ask(alpha).has_error()
    told = [entry.fields for entry in AuditLog(settings.audit).read().entries]
    decided = [(line["event"], line["by"], line["proposal"]) for line in told if "proposal" in line]
    id_ = Proposal.of(CONFIG).id
    assert decided == [("approved", "Dr. Who", id_), ("revoked", "Dr. Who", id_), ("approved", "Dr. No", id_)]
    assert {line["experiment"] for line in told if line["event"] == "answered"} == {CONFIG.content_hash}
    assert Proposal.of(CONFIG).experiment_hash == CONFIG.content_hash


def test_what_was_rejected_waits_no_more(alpha: Path) -> None:
    ask(alpha)
    decide(alpha, "rejected")
    with pytest.raises(NotApproved, match=r"was rejected by Dr\. Who"):
        admitted(alpha)
    assert settled(alpha)[1].waiting() == []


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("method", "train", {"rounds": 3}),
        ("federation", "quorum", 0.5),
        ("memory", "exemplars", 25),
        ("data", "image_size", 17),
    ],
)
def test_any_change_of_the_experiment_waits_again(alpha: Path, section: str, key: str, value: Any) -> None:
    approve_proposal(settled(alpha)[0], Proposal.of(CONFIG), "Dr. Who")
    changed = deployed(["beta", "alpha"], CLASSES, sections={section: {key: value}})
    assert refused(ask(alpha, changed)) == (NotApproved.code, "NotApproved")
    assert not ask(alpha).has_error()


def test_an_extended_run_waits_again(alpha: Path) -> None:
    approve_proposal(settled(alpha)[0], Proposal.of(CONFIG), "Dr. Who")
    for grown in (with_new_task(CONFIG, ["7"]), with_sites(CONFIG, ["gamma"])):
        with pytest.raises(NotApproved, match="waits for your approval"):
            admitted(alpha, grown)


def test_what_the_operator_replaced_waits_no_more(alpha: Path) -> None:
    """A run asks for one experiment at a time; other runs, and what was decided on, are not concerned."""
    misspelt, meant = with_new_task(CONFIG, ["zoster"]), with_new_task(CONFIG, ["herpes zoster"])
    other = with_new_task(CONFIG, ["7"])
    ask(alpha, other, run="another-0123456789abcdef")
    decide(alpha, "rejected", CONFIG)
    for asked in (misspelt, meant, misspelt, meant):
        ask(alpha, asked)
        assert {one.id for one in settled(alpha)[1].waiting()} == {Proposal.of(asked).id, Proposal.of(other).id}
    assert Proposal.of(CONFIG).id in {one.id for one in settled(alpha)[1].proposals()}
    decide(alpha, "approved", meant)
    assert not ask(alpha, meant).has_error()
    assert [one.id for one in settled(alpha)[1].waiting()] == [Proposal.of(other).id]


def test_another_version_of_the_code_waits_again(alpha: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    approve_proposal(settled(alpha)[0], Proposal.of(CONFIG), "Dr. Who")
    admitted(alpha)
    monkeypatch.setattr(module, "code_hash", lambda *_: "f" * 64)
    with pytest.raises(NotApproved, match=f"code {'f' * 12}"):
        admitted(alpha)
    (waiting,) = settled(alpha)[1].waiting()
    assert (waiting.code, waiting.config) == ("f" * 64, CONFIG)


def test_the_places_on_a_servers_disk_make_no_other_experiment(tmp_path: Path) -> None:
    """What the operator sends by mail lies elsewhere than what he runs."""
    ids = set()
    for folder in (tmp_path / "operator", tmp_path / "site"):
        folder.mkdir()
        data = {**CONFIG.model_dump(mode="json"), "data": {**CONFIG.model_dump(mode="json")["data"], "root": "images"}}
        data["backbone"] |= {"name": "resnet18", "weights": "weights/resnet.pth"}
        (folder / "one.yaml").write_text(json.dumps(data))
        ids.add(Proposal.of(load_config(folder / "one.yaml")).id)
    assert len(ids) == 1
    data["backbone"]["weights"] = "weights/other.pth"
    (folder / "one.yaml").write_text(json.dumps(data))
    assert Proposal.of(load_config(folder / "one.yaml")).id not in ids


def test_a_site_may_do_without(alpha: Path) -> None:
    alpha.write_text(f"{alpha.read_text()}approval: off\n")  # which YAML reads as false
    assert load_site(alpha).approval == "off"
    assert not ask(alpha).has_error()
    assert not (alpha.parent / "approvals").exists()
    alpha.write_text(f"{alpha.read_text()}".replace("approval: off", "approval: never"))
    with pytest.raises(ConfigError, match="unknown value 'never'; accepted: required, off"):
        load_site(alpha)


def test_a_server_that_sends_nonsense_does_not_fill_the_disk(alpha: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_WAITING", 3)
    assert MOST_WAITING >= 3
    for seed in range(6):
        assert refused(ask(alpha, CONFIG.model_copy(update={"seed": seed}), run=f"run-{seed}"))[0] == NotApproved.code
    assert len(settled(alpha)[1].waiting()) == 3
    monkeypatch.setattr(module, "LONGEST", 100)
    decide(alpha, "rejected", CONFIG.model_copy(update={"seed": 0}))
    with pytest.raises(NotApproved, match="too long"):
        admitted(alpha, CONFIG.model_copy(update={"seed": 9}))


def test_the_policy_stands_above_an_approval(alpha: Path) -> None:
    (alpha.parent / "policy.yaml").write_text("methods: [dynammo]\n")
    assert refused(ask(alpha)) == (PolicyError.code, "PolicyError")
    settings, approvals = settled(alpha)
    assert len(approvals.waiting()) == 1  # to be seen, with the reason
    with pytest.raises(PolicyError, match="the method replay is not among those allowed"):
        approve_proposal(settings, Proposal.of(CONFIG), "Dr. Who")
    (alpha.parent / "policy.yaml").write_text("methods: [replay]\n")
    approve_proposal(settings, Proposal.of(CONFIG), "Dr. Who")
    admitted(alpha)
    (alpha.parent / "policy.yaml").write_text("methods: [dynammo]\n")
    with pytest.raises(PolicyError):
        admitted(alpha)


# --- the server


def test_the_operator_sees_who_waits_and_goes_on_after_the_approval(tmp_path: Path) -> None:
    hospitals = make_hospitals(tmp_path, {"alpha": HELD, "beta": HELD})
    config = deployed(["alpha", "beta"], CLASSES)
    alpha, beta = (load_site(file) for file in hospitals.files.values())
    approve_proposal(alpha, Proposal.of(config), "Dr. Who")
    hospitals.careful = True
    with pytest.raises(RunError, match=r"1 of 2 sites answered, 2 are needed; failed: beta \(NotApproved, code 108\)"):
        run_small(config, tmp_path / "runs", grid=hospitals)
    (waiting,) = Approvals(beta.approvals).waiting()
    (refused,) = (tmp_path / "runs").iterdir()
    (start,), (end,) = events(refused, "run_started"), events(refused, "run_failed")
    assert end["failures"] == [{"site": 1, "code": 108, "error": "NotApproved"}]
    words = failure_words(start, end)  # what both sides read on their screens is one hash
    assert f"beta (NotApproved, code 108): nobody there has approved {config.name} (hash {waiting.id[:16]})" in words
    assert "they type `dynammo-site approve`" in words
    assert "--resume" not in words
    approve_proposal(beta, waiting, "Dr. No")
    path = run_small(config, tmp_path / "runs", grid=hospitals).path
    assert events(path, "run_finished")

    assert not [failure for event in events(path, "step_finished") for failure in event["failures"]]


# --- what nobody can change unseen


def test_a_changed_decision_is_found_and_nothing_is_approved(alpha: Path) -> None:
    decide(alpha, "rejected")
    path = load_site(alpha).approvals / DECISIONS
    path.write_bytes(path.read_bytes().replace(b"rejected", b"approved"))
    assert refused(ask(alpha)) == (CheckpointError.code, "CheckpointError")
    with pytest.raises(CheckpointError, match=r"decisions\.jsonl were changed"):
        decide(alpha, "approved")


def test_a_decision_that_was_cut_off_contradicts_the_audit_log(alpha: Path) -> None:
    settings, approvals = settled(alpha)
    audit = AuditLog(settings.audit)
    decide(alpha, "approved")
    path = settings.approvals / DECISIONS
    before = path.read_bytes()
    assert approvals.contradictions(audit) == []
    decide(alpha, "revoked")
    assert approvals.contradictions(audit) == []
    path.write_bytes(before)
    id_ = Proposal.of(CONFIG).id[:16]
    assert approvals.contradictions(audit) == [f"{id_} is approved, but revoked in the audit log"]
    settings.audit.unlink()
    assert approvals.contradictions(audit) == [f"{id_} is approved, but not decided in the audit log"]


def test_a_proposal_that_is_not_what_its_name_says_is_none(alpha: Path) -> None:
    ask(alpha)
    approvals = settled(alpha)[1]
    (file,) = approvals.folder.iterdir()
    whole = file.read_bytes()
    for content in (whole.replace(b"replay", b"joint"), whole[:-9], b"", b"[]", b"{}", b'{"experiment": 1}'):
        file.write_bytes(content)
        assert approvals.proposals() == []
    ask(alpha)  # it is filed again
    assert [proposal.id for proposal in approvals.waiting()] == [Proposal.of(CONFIG).id]


def test_what_cannot_be_filed_is_refused_all_the_same(alpha: Path) -> None:
    load_site(alpha).approvals.write_text("a file")
    assert refused(ask(alpha)) == (CheckpointError.code, "CheckpointError")
