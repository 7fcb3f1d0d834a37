"""The ClientApp as Flower calls it: right answers in Flower's records, and errors of which code and class leave."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from small_runs import instruction, records, small_config, small_site, step_of

from client.app import app
from client.hospital.door import UNEXPECTED
from client.steps.actions import answer
from dynammo_core.experiment import Experiment
from dynammo_core.plan import Action
from dynammo_core.support.errors import CheckpointError, ConfigError, DataError, MemoryStoreError, ProtocolError
from dynammo_core.wire.envelope import MESSAGE_TYPES
from dynammo_core.wire.sparse_counts import with_sparse_table
from simulations.engines.local_grid import LocalGrid

EXPERIMENT = Experiment(small_config())
SECRET = "patient-4711"


def call(content: RecordDict, message_type: str = "train.fit") -> Message:
    """Through Flower's own serialisation, there and back."""
    grid = LocalGrid(app, nodes=1, run_config={})
    message = Message(content, grid.get_node_ids()[0], message_type, ttl=60.0)
    (reply,) = grid.send_and_receive([message], timeout=60)
    return reply


def refused(content: RecordDict, error: type[Exception], code: int, message_type: str = "train.fit") -> None:
    reply = call(content, message_type)
    assert reply.has_error()
    assert (reply.error.code, reply.error.reason) == (code, error.__name__)


def adapting(workspace: Path, **changed: Any) -> RecordDict:
    return records(replace(instruction(EXPERIMENT, step_of(EXPERIMENT, 0, "adapt"), 0, workspace), **changed))


@pytest.mark.parametrize("name", ["adapt", "balance", "remember", "evaluate"])
def test_the_reply_carries_the_report_and_nothing_else(tmp_path: Path, name: str) -> None:
    step = step_of(EXPERIMENT, 0, name)
    sent = instruction(EXPERIMENT, step, 0, tmp_path / "one")
    report = answer(sent, small_site(EXPERIMENT, 0, tmp_path / "two"))
    reply = call(records(sent), MESSAGE_TYPES[step.stage.action])
    content = reply.content
    assert set(content) == {"weights", "numbers", "report"}
    assert dict(content.config_records["report"]) == {"abstained": False}
    received = {name: torch.from_numpy(array.numpy()) for name, array in content.array_records["weights"].items()}
    assert received.keys() == report.weights.keys()
    assert all(torch.equal(received[name], report.weights[name]) for name in received)
    numbers = dict(content.metric_records["numbers"])
    declared = with_sparse_table(report).numbers
    assert numbers.keys() == declared.keys()
    assert all(numbers[name] == declared[name] for name in numbers if name != "seconds")


def test_each_action_has_its_handler(tmp_path: Path) -> None:
    """A message of an action's type reaches a handler: it is refused by us for its content, not by Flower."""
    assert set(MESSAGE_TYPES) == set(Action)
    for message_type in MESSAGE_TYPES.values():
        refused(RecordDict(), ProtocolError, ProtocolError.code, message_type)


def test_abstaining_is_an_answer(tmp_path: Path) -> None:
    reply = call(adapting(tmp_path, site=1))
    assert not reply.has_error()
    assert dict(reply.content.config_records["report"]) == {"abstained": True}
    assert not reply.content.array_records["weights"]
    assert not reply.content.metric_records["numbers"]


# --- what is refused, and what of the reason leaves the site


def test_other_code_is_refused_before_anything_is_done(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    refused(adapting(tmp_path, code_hash="f" * 64), ProtocolError, 105)
    assert "the server runs the code ffffffffffff, this site" in caplog.text
    refused(adapting(tmp_path, code_hash="f" * 64, packages="timm 1.0.99"), ProtocolError, 105)
    assert "the server runs the code ffffffffffff with timm 1.0.99, this site" in caplog.text
    refused(adapting(tmp_path, code_hash="f" * 64, packages="a name \x1b[2J"), ProtocolError, 105)
    assert "a name" not in caplog.text
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changed", "error", "code"),
    [
        ({"step": 10**6}, ProtocolError, 105),
        ({"weights": {}}, ProtocolError, 105),
        ({"weights": {"images": torch.zeros(2, 2)}}, ProtocolError, 105),
        ({"experiment": EXPERIMENT.config.canonical_json().replace("small_cnn", "smal_cnn")}, ConfigError, 101),
        ({"experiment": EXPERIMENT.config.canonical_json().replace("dynammo", "dynamo")}, ConfigError, 101),
        ({"experiment": "{"}, ProtocolError, 105),
    ],
)
def test_an_instruction_that_does_not_fit_is_refused(
    tmp_path: Path, changed: dict[str, Any], error: type[Exception], code: int
) -> None:
    reply = call(adapting(tmp_path, **changed))
    assert reply.has_error()
    assert reply.error.code == code
    assert reply.error.reason in {error.__name__, *(sub.__name__ for sub in error.__subclasses__())}


def test_weights_that_training_blows_up_do_not_leave(tmp_path: Path) -> None:
    sent = instruction(EXPERIMENT, step_of(EXPERIMENT, 0, "adapt"), 0, tmp_path)
    infinite = {name: torch.full_like(tensor, torch.inf) for name, tensor in sent.weights.items()}
    refused(adapting(tmp_path, weights=infinite), ProtocolError, 105)


@pytest.mark.parametrize(
    "lacking",
    [
        "weights",
        "tensors",
        "instruction",
        "experiment",
        "code_hash",
        "packages",
        "step",
        "site",
        "workspace",
        "correction",
        "taken",
    ],
)
def test_a_message_that_lacks_a_part_is_refused(tmp_path: Path, lacking: str) -> None:
    content = adapting(tmp_path)
    if lacking in content:
        del content[lacking]
    else:
        del content.config_records["instruction"][lacking]
    refused(content, ProtocolError, 105)


def test_a_message_of_other_types_is_refused(tmp_path: Path) -> None:
    content = adapting(tmp_path)
    content.config_records["instruction"]["step"] = "first"
    refused(content, ProtocolError, 105)
    content = adapting(tmp_path)
    content["weights"] = ArrayRecord({"a": Array(dtype="float32", shape=(1,), stype="pickle", data=b"cos\nsystem")})
    refused(content, ProtocolError, 105)
    content["weights"] = MetricRecord({"a": 1.0})
    refused(content, ProtocolError, 105)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (DataError(f"the image /data/{SECRET}.png cannot be read"), 102),
        (MemoryStoreError(f"record {SECRET}"), 106),
        (CheckpointError(f"cannot write /data/{SECRET}"), 104),
        (ValueError(f"/data/{SECRET}"), UNEXPECTED),
        (KeyError(SECRET), UNEXPECTED),
        (MemoryError(), UNEXPECTED),
    ],
)
def test_no_text_of_an_error_leaves_the_site(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception, code: int
) -> None:
    def fail(*_: Any, **__: Any) -> NoReturn:
        raise error

    monkeypatch.setattr("client.steps.site.load_samples", fail)
    experiment = Experiment(small_config(overrides={"seed": 1000 + code}))  # nothing of it is in a cache yet
    sent = instruction(experiment, experiment.steps[0], 0, tmp_path)
    content = records(sent)
    reply = call(content)
    assert (reply.error.code, reply.error.reason) == (code, type(error).__name__)
    assert SECRET not in repr(vars(reply))
    assert str(error) in caplog.text  # it is in the site's own log
    deliberate = code != UNEXPECTED
    assert [record.exc_info is None for record in caplog.records if record.name == "dynammo.client"] == [deliberate]


def test_a_deliberate_error_is_one_line_in_the_sites_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "dynammo.client"):
        call(adapting(tmp_path, step=10**6))
    (line,) = [record.getMessage() for record in caplog.records if record.name == "dynammo.client"]
    assert line.startswith("step failed: the plan has no step 1000000")
