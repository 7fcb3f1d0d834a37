"""The exchange with all sites: order, nodes and failures change nothing about the answers of the others."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.serverapp.grid.grid import NodeInfo
from hypothesis import given
from hypothesis import strategies as st
from small_runs import SITES, instruction, small_config, step_of

from client.app import app
from dynammo_core.configuration.federation import FederationSettings
from dynammo_core.experiment import Experiment
from dynammo_core.plan import Action
from dynammo_core.support.errors import ProtocolError
from dynammo_core.wire.protocol import Report
from dynammo_core.wire.protocol_checks import check_report
from server.run.answers import Answers, Failure
from server.run.exchange import Exchange, Question
from simulations.engines.local_grid import LocalGrid

EXPERIMENT = Experiment(small_config())
STEP = step_of(EXPERIMENT, 1, "adapt")  # every site has images of the second task
SENT = instruction(EXPERIMENT, STEP, 0, Path("nowhere"))
MODEL = EXPERIMENT.build_model(1)
Client = Callable[[Message, Context], Message]


class Reversed(LocalGrid):
    """Lets the last node that was asked answer first."""

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        return super().pull_messages(list(message_ids)[-1:])


class Deaf(LocalGrid):
    """The second node that is asked never answers."""

    lost = ""

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        message_ids = super().push_messages(messages)
        self.lost = message_ids[1]
        return message_ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        return super().pull_messages([message_id for message_id in message_ids if message_id != self.lost])


class Unreachable(LocalGrid):
    """As Flower's own grid: no id for the second message, whose node is gone."""

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        first, _, *others = messages
        kept = super().push_messages([first, *others])
        return [kept[0], None, *kept[1:]]  # type: ignore[list-item]


class TooLarge(LocalGrid):
    """As Flower's own grid when the messages are larger than the server takes."""

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        return []


def check(_: int, report: Report) -> Report:
    check_report(report, STEP.stage, MODEL, EXPERIMENT.classes)
    return report


OPTIONS: dict[str, Any] = {"needed": 1, "on_waiting": lambda _: None, "on_asked": lambda _: None}
NAMED = FederationSettings(site_names=("a", "b", "c"), patience_seconds=0.2)


def ask(
    grid: LocalGrid,
    workspace: Path,
    *,
    deadline: float = 60,
    heard: list[tuple[list[int], list[int]]] | None = None,
    reached: list[list[int]] | None = None,
    waited: list[list[int]] | None = None,
    federation: FederationSettings = EXPERIMENT.config.federation,
) -> Answers:
    return Exchange(grid, federation).ask(
        Question(Action.FIT, instruction(EXPERIMENT, STEP, -1, workspace), check, deadline, group="task1/adapt/1"),
        range(SITES),
        needed=1,
        on_waiting=(waited if waited is not None else []).append,
        on_asked=(reached if reached is not None else []).append,
        on_answers=lambda *sites: (heard if heard is not None else []).append(sites),
    )


def grid_of(client: Client, nodes: int = SITES, kind: type[LocalGrid] = LocalGrid) -> LocalGrid:
    return kind(client, nodes=nodes, run_config={})  # type: ignore[arg-type]


def bits(answers: Answers) -> list[tuple[int, dict[str, bytes], dict[str, Any]]]:
    return [
        (
            site,
            {name: tensor.numpy().tobytes() for name, tensor in report.weights.items()},
            {name: value for name, value in report.numbers.items() if name != "seconds"},
        )
        for site, report in answers.reports.items()
    ]


def only_for(site: int, client: Client) -> Client:
    """The real client, but for one site."""

    def handle(message: Message, context: Context) -> Message:
        asked = message.content.config_records["instruction"]["site"]
        return client(message, context) if asked == site else app(message, context)

    return handle


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Answers:
    return ask(grid_of(app), tmp_path_factory.mktemp("plain"))


def test_all_sites_answer_in_their_order(plain: Answers) -> None:
    assert list(plain.reports) == [0, 1, 2]
    assert plain.failures == []
    assert len({str(one) for one in bits(plain)}) == SITES  # three sites, three different answers


@pytest.mark.parametrize("nodes", [1, 2, 5])
def test_any_node_can_play_any_site(plain: Answers, tmp_path: Path, nodes: int) -> None:
    assert bits(ask(grid_of(app, nodes), tmp_path)) == bits(plain)


def test_the_order_in_which_answers_come_changes_nothing(plain: Answers, tmp_path: Path) -> None:
    heard: list[tuple[list[int], list[int]]] = []
    reached: list[list[int]] = []
    assert bits(ask(grid_of(app, kind=Reversed), tmp_path, heard=heard, reached=reached)) == bits(plain)
    assert sorted(site for answered, _ in heard for site in answered) == [0, 1, 2]
    assert reached == [[0, 1, 2]]


# --- failures


def others_are_unharmed(answers: Answers, plain: Answers) -> None:
    assert bits(answers) == [one for one in bits(plain) if one[0] != 1]


def test_a_site_that_refuses_is_named_with_code_and_class(plain: Answers, tmp_path: Path) -> None:
    def refuse(message: Message, context: Context) -> Message:
        message.content.config_records["instruction"]["code_hash"] = "other"
        return app(message, context)

    answers = ask(grid_of(only_for(1, refuse)), tmp_path)
    assert answers.failures == [Failure(1, 105, "ProtocolError")]
    others_are_unharmed(answers, plain)


def test_a_site_whose_app_dies_is_named(plain: Answers, tmp_path: Path) -> None:
    def die(*_: Any) -> NoReturn:
        raise RuntimeError("patient-4711")

    answers = ask(grid_of(only_for(1, die)), tmp_path)
    (failure,) = answers.failures
    assert (failure.site, failure.error) == (1, "Error")
    assert failure.code != 0
    others_are_unharmed(answers, plain)


@pytest.mark.parametrize(
    ("reason", "kept"),
    [
        ("DataError", "DataError"),
        ("DataError: /data/patient-4711.png", "DataError"),
        ("DataError('/data/patient-4711.png')", "DataError"),
        ("/data/patient-4711.png", "Error"),
        ("<class 'x'>:<'patient-4711'>", "Error"),
        ("patient 4711", "Error"),
        ("", "Error"),
    ],
)
def test_of_a_sites_reason_only_a_class_name_is_kept(tmp_path: Path, reason: str, kept: str) -> None:
    """A site that runs other code may send more than it should: it does not reach the server's log."""
    failing = grid_of(only_for(1, lambda message, _: Message(Error(102, reason), reply_to=message)))
    heard: list[tuple[list[int], list[int]]] = []
    answers = ask(failing, tmp_path, heard=heard)
    assert answers.failures == [Failure(1, 102, kept)]
    assert [failed for _, failed in heard if failed] == [[1]]  # it has not answered


def test_a_site_that_stays_silent_is_named_after_the_deadline(plain: Answers, tmp_path: Path) -> None:
    heard: list[tuple[list[int], list[int]]] = []
    answers = ask(grid_of(app, kind=Deaf), tmp_path, deadline=1.5, heard=heard)
    assert answers.failures == [Failure(1, 0, "NoAnswerBeforeDeadline")]
    assert heard == [([0], []), ([2], [])]
    others_are_unharmed(answers, plain)


def test_a_site_that_cannot_be_reached_is_named(plain: Answers, tmp_path: Path) -> None:
    heard: list[tuple[list[int], list[int]]] = []
    answers = ask(grid_of(app, kind=Unreachable), tmp_path, heard=heard)
    assert answers.failures == [Failure(1, 0, "NotDelivered")]
    assert heard == [([0], []), ([2], [])]
    others_are_unharmed(answers, plain)


def test_when_nothing_can_be_sent_all_sites_are_named(tmp_path: Path) -> None:
    answers = ask(grid_of(app, kind=TooLarge), tmp_path)
    assert answers == Answers({}, [Failure(site, 0, "NotDelivered") for site in range(SITES)])


def npy(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def content(weights: Any = None, numbers: Any = None, report: Any = None) -> RecordDict:
    return RecordDict(
        {
            "weights": ArrayRecord(weights or {}),
            "numbers": MetricRecord(numbers or {}),
            "report": ConfigRecord(report if report is not None else {"abstained": False}),
        }
    )


def raw(data: bytes, stype: str = "numpy.ndarray") -> dict[str, Array]:
    return {"extractor.adapters.0.alpha": Array(dtype="float32", shape=(), stype=stype, data=data)}


GARBAGE: dict[str, RecordDict] = {
    "nothing": RecordDict(),
    "no tensors at all": content(),
    "records of other kinds": RecordDict({name: ConfigRecord() for name in ("weights", "numbers", "report")}),
    "no word on abstaining": content(report={}),
    "an undeclared tensor": content({"images": Array(np.zeros((2, 3, 3)))}),
    "a declared tensor of another shape": content({"extractor.adapters.0.alpha": Array(np.zeros(3, np.float32))}),
    "no bytes": content(raw(b"")),
    "bytes of no array": content(raw(b"not an array")),
    "an archive": content(raw(b"PK\x03\x04 not an archive")),
    "half an array": content(raw(npy(np.zeros(50, np.float32))[:-4])),
    "a pickle": content(raw(b"\x80\x04cos\nsystem\n", "pickle")),
    "texts": content(raw(npy(np.array(["patient-4711"])))),
    "dates": content(raw(npy(np.array(["2024-01-01"], dtype="datetime64[D]")))),
    "bytes in the other order": content(raw(npy(np.array(1, dtype=">f4")))),
    "infinite counts": content(numbers={"class_counts": [math.inf] * 10}),
    "counts that are no numbers": content(numbers={"class_counts": [math.nan] * 10}),
}


@pytest.mark.parametrize("kind", GARBAGE)
def test_garbage_is_a_failure_of_its_site(plain: Answers, tmp_path: Path, kind: str) -> None:
    answers = ask(grid_of(only_for(1, lambda message, _: Message(GARBAGE[kind], reply_to=message))), tmp_path)
    assert answers.failures == [Failure(1, ProtocolError.code, "ProtocolError")]
    others_are_unharmed(answers, plain)


@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_are_a_failure_of_their_site(data: bytes, with_header: bool) -> None:
    """Without the other two sites, for speed; half of the time with the header that makes numpy read on."""
    garbage = content(raw(npy(np.zeros(3))[:10] + data if with_header else data))
    answers = Exchange(grid_of(lambda message, _: Message(garbage, reply_to=message)), FederationSettings()).ask(
        Question(Action.FIT, replace(SENT, weights={}), check, 60.0), [0], **OPTIONS, on_answers=lambda *_: None
    )
    assert answers.failures == [Failure(0, ProtocolError.code, "ProtocolError")]
    assert answers.reports == {}


# --- nodes


def test_a_site_that_is_not_connected_is_a_failure_and_the_others_go_on(plain: Answers, tmp_path: Path) -> None:
    """Named sites, of which one is away: only those that are there are asked."""
    grid = grid_of(app)
    node, other, _ = grid.get_node_ids()
    online = [NodeInfo(node_id=node, name="a"), NodeInfo(node_id=other, name="b")]
    grid.get_nodes = lambda: online  # type: ignore[method-assign]
    waited: list[list[int]] = []
    answers = ask(grid, tmp_path, federation=NAMED, waited=waited)
    assert answers.failures == [Failure(2, 0, "NotConnected")]
    assert waited == [[2]]
    assert list(answers.reports) == [0, 1]


def test_a_site_that_starts_anew_in_a_round_is_not_waited_for(
    plain: Answers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first start had the message and lost it; its second one will never answer."""
    monkeypatch.setattr("server.run.exchange.LOOK_SECONDS", 0.1)
    grid = grid_of(app, kind=Deaf)
    starts = iter(["2026-01-01 10:00:00", "2026-01-01 10:00:00"])  # when it is found, and when it is asked

    def nodes() -> list[NodeInfo]:
        second = next(starts, "2026-01-01 10:07:30")
        times = ("2026-01-01 09:00:00", second, "2026-01-01 09:00:00")
        named = zip(grid.get_node_ids(), "abc", times, strict=True)
        return [NodeInfo(node_id=node, name=name, last_activated_at=at) for node, name, at in named]

    grid.get_nodes = nodes  # type: ignore[method-assign]
    answers = ask(grid, tmp_path, federation=NAMED)
    assert answers.failures == [Failure(1, 0, "Restarted")]
    others_are_unharmed(answers, plain)


def test_weights_that_all_sites_share_are_serialised_once(monkeypatch: pytest.MonkeyPatch) -> None:
    serialised: list[str] = []

    def counted(dtype: str, *form: Any) -> Array:
        serialised.append(dtype)
        return Array(dtype, *form)

    monkeypatch.setattr("dynammo_core.wire.envelope.Array", counted)
    silent = grid_of(lambda message, _: Message(Error(100, "DynammoError"), reply_to=message))
    exchange = Exchange(silent, FederationSettings())
    question = Question(Action.FIT, SENT, check, 60.0)
    answers = exchange.ask(question, range(50), **OPTIONS, on_answers=lambda *_: None)
    assert len(answers.failures) == 50
    assert len(serialised) == len(SENT.weights)
