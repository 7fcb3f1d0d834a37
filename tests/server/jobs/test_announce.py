"""Which classes the sites can bring: asked of real site settings, and of sites that lie, fail or are gone."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from hospitals import Hospitals, make_hospital, make_hospitals, with_images

from dynammo_core.wire.statistics import GREYS, SIDES, TABLES
from server.jobs.announce import ask_all, ask_for_statistics
from simulations.engines.local_grid import LocalGrid


def told(grid: LocalGrid, folder: Path) -> dict[str, Any]:
    ask_all(grid, folder / "told.json")
    return dict(json.loads((folder / "told.json").read_text()))


def test_every_connected_site_is_asked(tmp_path: Path) -> None:
    grid = make_hospitals(tmp_path, {"alpha": {"0": 9, "1": 4}, "beta": {"1": 12, "7": 3}, "gamma": {"2": 5}})
    grid.away.add("gamma")
    # one test image a class comes on top: 10, 5; 13, 4
    assert told(grid, tmp_path) == {
        "alpha": {"classes": {"0": 10, "1": 1}},
        "beta": {"classes": {"1": 10, "7": 1}},
    }


def test_statistics_are_asked_of_all_and_refused_by_policy(tmp_path: Path) -> None:
    grid = make_hospitals(tmp_path, {"alpha": {"0": 9}, "beta": {"1": 12}})
    (tmp_path / "alpha" / "policy.yaml").write_text("statistics: true\n")
    ask_for_statistics(grid, tmp_path / "told.json")
    said = json.loads((tmp_path / "told.json").read_text())
    counts = {"train_images": 9, "train_patients": 9, "test_images": 0, "test_patients": 0}
    assert said["alpha"]["classes"] == {"0": counts} and said["alpha"]["sides"]["1"] == 9
    assert list(said["alpha"]["classes"]["0"]) == list(TABLES), "in the order of the table's columns"
    assert [*map(int, said["alpha"]["sides"])] == list(SIDES) and [*map(int, said["alpha"]["greys"])] == list(GREYS)
    assert said["beta"] == {"error": "PolicyError"}
    forged = Forged(grid, lambda message: Message(RecordDict({"statistics": ConfigRecord({})}), reply_to=message))
    ask_for_statistics(forged, tmp_path / "told.json")
    assert json.loads((tmp_path / "told.json").read_text())["beta"] == {"error": "ProtocolError"}


def test_with_nobody_there_nobody_is_asked(tmp_path: Path) -> None:
    grid = make_hospitals(tmp_path, {"alpha": {"0": 9}})
    grid.away.add("alpha")
    assert told(grid, tmp_path) == {}


def test_a_site_whose_images_cannot_be_read_is_named_and_stops_nobody(tmp_path: Path) -> None:
    files = {
        "alpha": make_hospital(tmp_path / "alpha", "alpha", with_images(tmp_path, "alpha", {"0": 9})),
        "beta": make_hospital(tmp_path / "beta", "beta", tmp_path / "patient-4711.csv"),
        "gamma": make_hospital(tmp_path / "gamma", "gamma", tmp_path, data={"roots": "x"}),
    }
    said = told(Hospitals(files), tmp_path)
    assert said["alpha"] == {"classes": {"0": 10}}
    assert (said["beta"], said["gamma"]) == ({"error": "DataError"}, {"error": "ConfigError"})
    assert "4711" not in json.dumps(said)


Answer = Callable[[Message], Message]


class Forged(Hospitals):
    """The second hospital answers what it likes."""

    def __init__(self, grid: Hospitals, answer: Answer) -> None:
        super().__init__(grid.files)
        self.answer = answer

    def _at_home(self, message: Message, context: Context) -> Message:
        forged = self.names[context.node_id] == "beta"
        return self.answer(message) if forged else super()._at_home(message, context)


def saying(**fields: Any) -> Answer:
    return lambda message: Message(RecordDict({"announcement": ConfigRecord(fields)}), reply_to=message)


FORGED: dict[str, tuple[Answer, str]] = {
    "an exact count": (saying(classes=["a"], bands=[17]), "ProtocolError"),
    "a text for a band": (saying(classes=["a"], bands=["many"]), "ProtocolError"),
    "too few bands": (saying(classes=["a", "b"], bands=[1]), "ProtocolError"),
    "no list": (saying(classes="a", bands=1), "ProtocolError"),
    "a flood": (saying(classes=[str(i) for i in range(1001)], bands=[1] * 1001), "ProtocolError"),
    "a command for the terminal": (saying(classes=["\x1b[2J"], bands=[1]), "ProtocolError"),
    "no bands": (saying(classes=["a"]), "ProtocolError"),
    "nothing": (lambda message: Message(RecordDict(), reply_to=message), "ProtocolError"),
    "an error that tells": (
        lambda message: Message(Error(1, "OSError: /data/patient-4711"), reply_to=message),
        "OSError",
    ),
    "an error in words": (lambda message: Message(Error(1, "patient 4711"), reply_to=message), "Error"),
}


@pytest.mark.parametrize("kind", FORGED)
def test_a_forged_announcement_is_refused_and_the_others_are_heard(tmp_path: Path, kind: str) -> None:
    answer, error = FORGED[kind]
    grid = Forged(make_hospitals(tmp_path, {"alpha": {"0": 9}, "beta": {"1": 9}}), answer)
    assert told(grid, tmp_path) == {"alpha": {"classes": {"0": 10}}, "beta": {"error": error}}


def test_a_list_of_nothing_is_an_announcement(tmp_path: Path) -> None:
    grid = Forged(make_hospitals(tmp_path, {"alpha": {"0": 9}, "beta": {"1": 9}}), saying(classes=[], bands=[]))
    assert told(grid, tmp_path)["beta"] == {"classes": {}}


class Gone(Hospitals):
    """The second hospital goes away after it was asked: in its place the SuperLink says so, as itself."""

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        for message_id in message_ids:
            waiting = self._waiting.get(message_id)
            if waiting is not None and self.names[waiting.metadata.dst_node_id] == "beta":
                del self._waiting[message_id]
        return super().pull_messages(message_ids)


def test_a_site_that_goes_away_meanwhile_is_named_and_stops_nobody(tmp_path: Path) -> None:
    grid = Gone(make_hospitals(tmp_path, {"alpha": {"0": 9}, "beta": {"1": 9}}).files)
    assert told(grid, tmp_path) == {
        "alpha": {"classes": {"0": 10}},
        "beta": {"error": "NoAnswerBeforeDeadline"},
    }
