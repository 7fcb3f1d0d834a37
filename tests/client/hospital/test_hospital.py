"""A hospital is read once a message, and anew for the next; a simulated host has the same interface."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message, RecordDict
from hospitals import Hospitals, deployed, make_hospital, with_images
from small_runs import instruction, records, small_config, step_of

from client.consent.approvals import Proposal
from client.consent.settings import load_site
from client.hospital.admission import approve_proposal
from client.hospital.hospital import Hospital, Request, SimulatedHost, host_of
from client.steps.site import SimulatedSite
from dynammo_core.configuration import config as configuration
from dynammo_core.configuration.approval import config_from_json
from dynammo_core.configuration.config import Config
from dynammo_core.experiment import Experiment
from dynammo_core.support.errors import ConfigError, NotApproved, PolicyError

SECURE = {"federation": {"secure_aggregation": True}}
NAMES = ["alpha", "beta", "gamma"]
CLASSES = ["0", "1"]
PLAIN = deployed(NAMES, CLASSES)
MASKED = deployed(NAMES, CLASSES, "streaming_ridge", SECURE)
HELD = {"0": 9, "1": 9}


@dataclass
class Readings:
    """What is opened, by file name, and how many configurations are validated, while `counting`."""

    counting: bool = False
    counts: Counter[str] = field(default_factory=Counter)

    @contextmanager
    def of_one_message(self) -> Iterator[Counter[str]]:
        self.counts.clear()
        config_from_json.cache_clear()  # or the same text would not be read again, in this process
        self.counting = True
        try:
            yield self.counts
        finally:
            self.counting = False


@pytest.fixture(scope="module")
def opened_files() -> Readings:
    """Hears of every file that this process opens, from Python's audit events."""
    readings = Readings()

    def hear(event: str, arguments: tuple[Any, ...]) -> None:
        if readings.counting and event == "open":
            readings.counts[Path(str(arguments[0])).name] += 1

    sys.addaudithook(hear)
    return readings


@pytest.fixture
def readings(opened_files: Readings, monkeypatch: pytest.MonkeyPatch) -> Readings:
    validate = configuration.validate

    def counted(*arguments: Any) -> Any:
        opened_files.counts["validations"] += opened_files.counting
        return validate(*arguments)

    monkeypatch.setattr(configuration, "validate", counted)
    return opened_files


@pytest.fixture
def alpha(tmp_path: Path) -> Path:
    return make_hospital(tmp_path / "alpha", "alpha", with_images(tmp_path, "alpha", HELD))


def ask(site_yaml: Path, content: RecordDict, message_type: str) -> Message:
    """What alpha's app answers, where nobody approves by himself."""
    grid = Hospitals({"alpha": site_yaml})
    grid.careful = True
    (reply,) = grid.send_and_receive([Message(content, grid.get_node_ids()[0], message_type, ttl=60.0)], timeout=60)
    return reply


def asked(config: Config[Any], stage: str) -> RecordDict:
    experiment = Experiment(config)
    return records(instruction(experiment, step_of(experiment, 0, stage), 0, Path("/server")))


def policy(site_yaml: Path, text: str) -> None:
    (site_yaml.parent / "policy.yaml").write_text(text)


@pytest.mark.parametrize("stage", ["train", "remember", "evaluate"])
def test_a_message_reads_the_settings_and_the_policy_and_validates_the_experiment_once(
    alpha: Path, readings: Readings, stage: str
) -> None:
    approve_proposal(load_site(alpha), Proposal.of(PLAIN), "Dr. Who")
    message_type = {"train": "train.fit", "remember": "train.remember", "evaluate": "evaluate"}[stage]
    for _ in range(2):  # the second finds nothing of the first, though it comes to the same process
        with readings.of_one_message() as counts:
            assert not ask(alpha, asked(PLAIN, stage), message_type).has_error()
        assert {name: counts[name] for name in ("site.yaml", "policy.yaml", "validations")} == {
            "site.yaml": 1,
            "policy.yaml": 1,
            "validations": 1,
        }


def test_a_refused_message_reads_them_once_too(alpha: Path, readings: Readings) -> None:
    with readings.of_one_message() as counts:
        assert ask(alpha, asked(PLAIN, "train"), "train.fit").error.code == NotApproved.code
    assert (counts["site.yaml"], counts["policy.yaml"], counts["validations"]) == (1, 1, 1)
    policy(alpha, "methods: [dynammo]")
    with readings.of_one_message() as counts:
        assert ask(alpha, asked(PLAIN, "train"), "train.fit").error.code == PolicyError.code
    assert (counts["site.yaml"], counts["policy.yaml"], counts["validations"]) == (1, 1, 1)


def test_an_announcement_reads_them_once_too(alpha: Path, readings: Readings) -> None:
    with readings.of_one_message() as counts:
        assert not ask(alpha, RecordDict(), "query.announce").has_error()
    assert (counts["site.yaml"], counts["policy.yaml"], counts["validations"]) == (1, 1, 0)


def test_a_policy_that_changes_between_two_messages_is_heard(alpha: Path) -> None:
    approve_proposal(load_site(alpha), Proposal.of(PLAIN), "Dr. Who")
    assert not ask(alpha, asked(PLAIN, "train"), "train.fit").has_error()
    policy(alpha, "methods: [dynammo]")
    assert ask(alpha, asked(PLAIN, "train"), "train.fit").error.code == PolicyError.code
    policy(alpha, "announce: false")
    assert ask(alpha, RecordDict(), "query.announce").error.code == PolicyError.code


def test_the_policy_that_admits_an_experiment_is_the_one_it_runs_under(alpha: Path) -> None:
    """Between admission and use it cannot change: neither the size of a rare class nor the budget of privacy."""
    hospital, request = Hospital(alpha), Request(instruction_of(PLAIN), {})
    approve_proposal(hospital.settings, request.proposal, "Dr. Who")
    policy(alpha, "fewest_images: 9")
    hospital.admit(request)
    policy(alpha, "fewest_images: 1000")
    site = hospital.open(request)
    assert site.fewest.images == 9
    assert site.train_images((0, 1)).class_counts(2) == [9, 9]
    assert Hospital(alpha).open(request).fewest.images == 1000


def test_a_policy_that_cannot_be_read_refuses_and_the_refusal_is_recorded(alpha: Path) -> None:
    approve_proposal(load_site(alpha), Proposal.of(PLAIN), "Dr. Who")
    policy(alpha, "fewest_images: none")
    assert ask(alpha, asked(PLAIN, "train"), "train.fit").error.code == ConfigError.code
    last = Hospital(alpha).audit.read().entries[-1].fields
    assert (last["event"], last["asked"], last["class"]) == ("refused", "train.fit", "ConfigError")
    assert "policy.yaml" in last["text"]


def test_the_site_has_its_own_places_in_the_experiment_and_the_approval_is_for_the_servers(alpha: Path) -> None:
    request = Request(instruction_of(PLAIN), {})
    site = Hospital(alpha).open(request)
    assert site.experiment.config.data.root == str(alpha.parent.parent / "alpha" / "images")
    assert request.config == PLAIN
    assert request.proposal.experiment_hash == PLAIN.content_hash


@pytest.mark.parametrize("phase", ["keys", "shares", "masked", "open"])
def test_an_exchange_of_secure_aggregation_reads_them_once(alpha: Path, readings: Readings, phase: str) -> None:
    """What it lacks of keys it is refused for, after the site was opened."""
    approve_proposal(load_site(alpha), Proposal.of(MASKED), "Dr. Who")
    with readings.of_one_message() as counts:
        reply = ask(alpha, asked(MASKED, "sum"), f"train.{phase}")
    assert reply.error.reason == "ProtocolError"
    assert (counts["site.yaml"], counts["policy.yaml"], counts["validations"]) == (1, 1, 1)


def test_a_node_without_settings_simulates(tmp_path: Path) -> None:
    experiment = Experiment(small_config())
    request = Request(instruction(experiment, experiment.steps[0], 1, tmp_path), {})
    host = host_of({"partition-id": 0})
    assert isinstance(host, SimulatedHost)
    host.admit(request)
    site = host.open(request)
    assert isinstance(site, SimulatedSite)
    assert (site.index, site.store.path.parent) == (1, tmp_path / "site-001")
    assert host.answering(request, site).ledger is None
    assert site.experiment is host.open(request).experiment  # one of all messages, with the images it has read


def instruction_of(config: Config[Any]) -> Any:
    return instruction(Experiment(config), Experiment(config).steps[0], 0, Path("/server"))
