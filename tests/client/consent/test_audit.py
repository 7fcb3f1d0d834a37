"""The audit log of a real site: what it says is what left, and what it cannot say does not leave."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from flwr.app import Message, RecordDict
from hospitals import Hospitals, deployed, make_hospital, with_images
from small_runs import RUN, instruction, records, step_of

from client.app import app
from client.consent.audit import TEXT, AuditLog
from client.consent.settings import load_site
from client.hospital.door import UNEXPECTED
from client.hospital.hospital import SimulatedHost, host_of
from dynammo_core.code_identity import project_hash
from dynammo_core.configuration.config import resolve
from dynammo_core.experiment import Experiment
from dynammo_core.plan import Action
from dynammo_core.support.errors import CheckpointError, ConfigError, ProtocolError
from dynammo_core.wire.envelope import MESSAGE_TYPES
from dynammo_core.wire.protocol import Instruction
from simulations.engines.local_grid import LocalGrid

CLASSES = ["3", "1", "0", "2"]
EXPERIMENT = Experiment(deployed(["beta", "alpha"], CLASSES))
SECRET = "patient-4711"


@pytest.fixture
def alpha(tmp_path: Path) -> Path:
    return make_hospital(tmp_path / "alpha", "alpha", with_images(tmp_path, "alpha", {"0": 5, "1": 4, "3": 3}))


def asked(stage: str, **changes: Any) -> tuple[str, Instruction]:
    step = step_of(EXPERIMENT, 0, stage)
    return MESSAGE_TYPES[step.stage.action], replace(instruction(EXPERIMENT, step, 1, Path("/server")), **changes)


def ask(site_yaml: Path, kind: str, sent: Instruction | None) -> Message:
    grid = Hospitals({"alpha": site_yaml})
    content = records(sent) if sent else RecordDict()
    (reply,) = grid.send_and_receive([Message(content, grid.get_node_ids()[0], kind, ttl=60.0)], timeout=60)
    return reply


def told(site_yaml: Path) -> list[dict[str, Any]]:
    """All but what the engineer of `Hospitals` approved before."""
    entries = [entry.fields for entry in AuditLog(load_site(site_yaml).audit).read().entries]
    return [entry for entry in entries if entry["event"] != "approved"]


@pytest.mark.parametrize("stage", ["train", "remember", "evaluate"])
def test_what_the_log_says_is_what_left(alpha: Path, stage: str) -> None:
    kind, sent = asked(stage)
    content = ask(alpha, kind, sent).content
    left = {name: np.load(BytesIO(array.data)) for name, array in content.array_records["weights"].items()}
    assert bool(left) is (stage == "train")
    *before, line = told(alpha)
    assert [entry["event"] for entry in before] == (["memory"] if stage == "remember" else [])
    assert line.pop("time")
    groups = line.pop("tensors")
    size, length = line.pop("bytes"), line.pop("norm")
    numbers = dict(content.metric_records["numbers"])
    assert line == {
        **{"event": "answered", "run": RUN, "experiment": EXPERIMENT.config.content_hash, "code": project_hash()},
        **{"task": 0, "stage": stage, "round": 0, "action": sent_action(stage), "abstained": False},
        **{"numbers": sorted(numbers), "class_counts": numbers["class_counts"]},
    }
    assert size == sum(array.nbytes for array in left.values())
    assert length == pytest.approx(math.sqrt(sum((array.astype(np.float64) ** 2).sum() for array in left.values())))
    assert sum(group["count"] for group in groups.values()) == len(left)
    assert sum(group["bytes"] for group in groups.values()) == size
    for group, values in groups.items():
        own = [array for name, array in left.items() if name.startswith(f"{group}.") or name == group]
        squares = sum((array.astype(np.float64) ** 2).sum() for array in own)
        assert (values["count"], values["norm"]) == (len(own), pytest.approx(math.sqrt(squares)))


def sent_action(stage: str) -> str:
    return step_of(EXPERIMENT, 0, stage).stage.action.value


def test_the_memory_is_told_by_class_and_a_repeated_question_left_twice(alpha: Path) -> None:
    first, again = (ask(alpha, *asked("remember")).content.metric_records["numbers"]["class_counts"] for _ in "ab")
    assert first == again == [3, 4, 0, 0]  # of the classes 3 and 1, in the order of the registry
    lines = told(alpha)
    assert [entry["event"] for entry in lines] == ["memory", "answered"] * 2
    assert (lines[0]["run"], lines[0]["task"], lines[0]["exemplars"]) == (RUN, 0, {"3": 3, "1": 4})
    assert load_site(alpha).audit.stat().st_mode & 0o777 == 0o600


def test_a_site_that_abstains_says_so(tmp_path: Path) -> None:
    file = make_hospital(tmp_path / "alpha", "alpha", with_images(tmp_path, "alpha", {"0": 5}))
    assert dict(ask(file, *asked("train")).content.config_records["report"]) == {"abstained": True}
    (line,) = told(file)
    assert (line["abstained"], line["bytes"], line["norm"], line["tensors"]) == (True, 0, 0.0, {})
    assert (line["numbers"], line["class_counts"]) == ([], None)


def test_a_private_answer_says_what_was_spent(tmp_path: Path) -> None:
    """The real site pays for the census and its answer; the noise is of the system, the numbers of the census.

    By the census of so many images the site never abstains.
    """
    alpha = make_hospital(tmp_path / "alpha", "alpha", with_images(tmp_path, "alpha", {"3": 20, "1": 20}))
    own = {**EXPERIMENT.config.model_dump(mode="json"), "method": {"name": "streaming_ridge"}}
    private = Experiment(resolve({**own, "privacy": {"mechanism": "example", "count_noise": 2.0}}, "private", {}))
    kind, step = MESSAGE_TYPES[Action.SUMMARISE], step_of(private, 0, "sum")
    reply = ask(alpha, kind, instruction(private, step, 1, Path("/server")))
    numbers = dict(reply.content.metric_records["numbers"])
    assert set(numbers) == {"class_counts", "epsilon"}
    (line,) = told(alpha)
    assert line["epsilon"] == numbers["epsilon"]
    assert 0 < line["epsilon"] <= 8


def test_an_announcement_is_told_as_it_left(alpha: Path) -> None:
    left: dict[str, Any] = dict(ask(alpha, "query.announce", None).content.config_records["announcement"])
    (line,) = told(alpha)
    assert (line["event"], line["classes"]) == ("announced", dict(zip(left["classes"], left["bands"], strict=True)))
    assert left["classes"] == ["0", "1", "3"]


def test_of_a_refusal_the_text_is_kept_here(alpha: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> NoReturn:
        raise ValueError(SECRET + "x" * 10_000)

    kind, sent = asked("train", step=10**6)
    assert ask(alpha, kind, sent).error.code == ProtocolError.code
    monkeypatch.setattr("client.app.answer", fail)
    reply = ask(alpha, *asked("train"))
    assert (reply.error.code, reply.error.reason) == (UNEXPECTED, "ValueError")
    ours, theirs = told(alpha)
    assert (ours["event"], ours["asked"], ours["code"], ours["class"]) == ("refused", "train.fit", 105, "ProtocolError")
    assert ours["text"].startswith("the plan has no step 1000000")
    assert (theirs["code"], theirs["class"]) == (UNEXPECTED, "ValueError")
    assert theirs["text"] == (SECRET + "x" * 10_000)[:TEXT]


@pytest.mark.parametrize(("kind", "stage"), [("train.fit", "train"), ("query.announce", None)])
def test_what_cannot_be_recorded_does_not_leave(alpha: Path, kind: str, stage: str | None) -> None:
    load_site(alpha).audit.mkdir()
    reply = ask(alpha, kind, asked(stage)[1] if stage else None)
    assert reply.has_error()
    assert (reply.error.code, reply.error.reason) == (CheckpointError.code, "CheckpointError")


def test_a_refusal_that_cannot_be_recorded_tells_nothing_of_itself(alpha: Path) -> None:
    load_site(alpha).audit.mkdir()
    reply = ask(alpha, *asked("train", code_hash="f" * 64))
    assert (reply.error.code, reply.error.reason) == (CheckpointError.code, "CheckpointError")


def test_a_log_that_cannot_be_opened_stops_the_step_before_the_memory_changes(alpha: Path) -> None:
    load_site(alpha).audit.mkdir()
    assert ask(alpha, *asked("remember")).error.code == CheckpointError.code
    assert not list(alpha.parent.glob("memory/*/memory.safetensors"))


def test_a_full_disk_keeps_the_answer_back(alpha: Path, small_disk: Path) -> None:
    alpha.write_text(f"{alpha.read_text()}audit: {small_disk / 'audit.jsonl'}\n")
    assert not ask(alpha, *asked("evaluate")).has_error()
    (filler := small_disk / "filler").write_bytes(b"")
    with pytest.raises(OSError, match="No space left"), filler.open("ab", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
    before = told(alpha)
    for _ in range(8):  # the file's last page may hold a line or two more
        reply = ask(alpha, *asked("evaluate"))
        if reply.has_error():
            break
        before.append(told(alpha)[-1])
    assert (reply.error.code, reply.error.reason) == (CheckpointError.code, "CheckpointError")
    filler.unlink()
    assert not ask(alpha, *asked("evaluate")).has_error()
    # Nothing half-written in between; the refusal itself, which is shorter, may have found room.
    answers = [entry for entry in told(alpha) if entry["event"] == "answered"]
    assert answers[:-1] == before


def test_simulated_sites_write_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert isinstance(host_of({"partition-id": 0}), SimulatedHost)
    grid = LocalGrid(app, nodes=1, run_config={})
    message = Message(RecordDict(), grid.get_node_ids()[0], "train.fit", ttl=60.0)
    (reply,) = grid.send_and_receive([message], timeout=60)
    assert reply.error.code == ProtocolError.code
    assert not list(tmp_path.iterdir())


def test_the_log_has_a_place_of_its_own(alpha: Path) -> None:
    assert load_site(alpha).audit == alpha.parent / "audit.jsonl"
    alpha.write_text(f"{alpha.read_text()}audit: ./site.log\n")
    with pytest.raises(ConfigError, match=r"log and audit are both .*site\.log"):
        load_site(alpha)


def test_nothing_of_it_names_an_image(alpha: Path) -> None:
    for stage in ("train", "remember", "evaluate"):
        ask(alpha, *asked(stage))
    assert "alpha-0-0" not in json.dumps(told(alpha))
