"""Statistics before training: counted by hand, and attacked by subtraction, between tables and over time."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from hospitals import Hospitals, make_hospital, with_images
from hypothesis import given
from hypothesis import strategies as st

from client.app import app
from client.consent.fewest import Fewest
from client.consent.policy import load_policy
from client.consent.settings import load_site
from client.hospital.door import let_statistics_out
from client.hospital.hospital import Hospital
from client.hospital.statistics import TOLD, own_statistics, statistics_of
from dynammo_core.data.samples import Split
from dynammo_core.data.sources import ArraySource
from dynammo_core.support.errors import CheckpointError, ConfigError, PolicyError, ProtocolError
from dynammo_core.wire.envelope import STATISTICS, encode_statistics
from dynammo_core.wire.statistics import GREYS, SIDES, Statistics, steady
from simulations.engines.local_grid import LocalGrid

NAMES = ("naevus", "melanoma", "rare")
POLICY = "fewest_images: 5\nstatistics: true\n"


def hospital(folder: Path, held: dict[str, int], policy: str = POLICY) -> Path:
    site_yaml = make_hospital(folder / "alpha", "alpha", with_images(folder, "alpha", held))
    (site_yaml.parent / "policy.yaml").write_text(policy)
    return site_yaml


def split(labels: list[int], patients: list[str], greys: list[int]) -> Split:
    """Images of 8 pixels, each of one shade."""
    images = np.array(greys, np.uint8)[:, None, None] * np.ones((1, 8, 8), np.uint8)
    ids = tuple(map(str, range(len(labels))))
    return Split(ArraySource(images), np.array(labels, np.int64), ids, patients=tuple(patients))


def test_images_and_patients_are_counted_by_class_size_and_brightness() -> None:
    train = split([0] * 6 + [1] * 5 + [2] * 4, [*"aabbcc", *"abcde", *"wxyz"], [10] * 6 + [40] * 5 + [200] * 4)
    test = split([0] * 5 + [1], [*"pqrst", "u"], [10] * 5 + [250])
    told = statistics_of(NAMES, (train, test), Fewest(5))
    assert told == Statistics(("naevus", "melanoma"), (6, 5), (3, 5), (5, 0), (5, 0), (16, *[0] * 7), (11, 5, *[0] * 6))
    everything = statistics_of(NAMES, (train, test), Fewest())
    assert (everything.train_images, everything.test_images) == ((6, 5, 4), (5, 1, 0))
    assert everything.greys == (11, 5, 0, 0, 0, 0, 4, 1)
    persons = statistics_of(NAMES, (train, test), Fewest(5, 4))  # three patients are too few
    assert persons.train_images == (0, 5) and persons.images == 10


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 12), st.integers(0, 255)), min_size=1, max_size=60), st.data()
)
def test_no_small_cell_can_be_had_by_subtraction(images: list[tuple[int, int, int]], data: st.DataObject) -> None:
    """Whoever adds up all that was told: each sum, and what it leaves over, is nothing or at least five."""
    labels, patients, greys = (list(column) for column in zip(*images, strict=True))
    few = data.draw(st.sampled_from([Fewest(5), Fewest(5, 3)]))
    train, test = split(labels, list(map(str, patients)), greys), split([], [], [])
    told = statistics_of(NAMES, (train, test), few)
    assert not [cell for cell, count in told.cells().items() if 0 < count < few.images]
    assert not [cell for cell, count in told.persons().items() if 0 < count < few.patients]
    shown = {name for name, count in zip(told.classes, told.train_images, strict=True) if count}
    held = Counter(grey // 32 for label, grey in zip(labels, greys, strict=True) if NAMES[label] in shown)
    assert told.images == held.total()  # images of a class that is left out are in no total
    hidden = [place for place in held if not told.greys[place]]
    assert len(hidden) != 1 or not any(told.greys)  # one alone would be what the others leave over
    persons = {p for label, p, grey in images if NAMES[label] in shown and grey // 32 in hidden}
    assert not hidden or not any(told.greys) or len(persons) >= few.patients


def test_a_few_new_images_change_nothing_that_is_told(tmp_path: Path) -> None:
    told = [Hospital(hospital(tmp_path, {"0": 9, "1": count})).statistics()[0] for count in (9, 10, 13, 14)]
    assert told[0].classes == ("0", "1") and told[0].train_images == (9, 9)
    assert told[0] == told[1] == told[2]
    assert told[3].train_images in ((9, 9), (9, 14))  # five more, unless a bin tells of fewer
    file = load_site(tmp_path / "alpha" / "site.yaml").memory.folder / TOLD
    assert file.stat().st_mode & 0o777 == 0o600
    file.write_text("{")
    with pytest.raises(CheckpointError, match="two answers may differ by a single image"):
        Hospital(tmp_path / "alpha" / "site.yaml").statistics()


def test_told_before_is_told_again_where_any_number_changes_by_few() -> None:
    before = Statistics(("a",), (20,), (9,), (0,), (0,), (20, *[0] * 7), (10, 10, *[0] * 6))
    more = replace(before, train_images=(25,), sides=(25, *[0] * 7), greys=(15, 10, *[0] * 6))
    assert steady(None, before, 5, 1) == before and steady(before, more, 5, 1) == more
    for few in (
        replace(more, greys=(12, 13, *[0] * 6)),
        replace(more, greys=(15, 0, *[0] * 6), sides=(24, *[0] * 7)),
        replace(before, train_images=(21,)),
        replace(before, train_patients=(10,)),
    ):
        assert steady(before, few, 5, 2) == before


def ask(site_yaml: Path) -> Message:
    grid = Hospitals({"alpha": site_yaml})
    (reply,) = grid.send_and_receive([Message(RecordDict(), grid.get_node_ids()[0], STATISTICS, ttl=60.0)])
    return reply


def test_nothing_else_leaves_and_the_log_says_what_did(tmp_path: Path) -> None:
    site_yaml = hospital(tmp_path, {"0": 9, "1": 4})
    content = ask(site_yaml).content
    assert list(content) == ["statistics"]
    record = dict(content.config_records["statistics"])
    assert (record["classes"], record["train_images"], record["test_images"]) == (["0"], [9], [0])
    assert (len(record["sides"]), len(record["greys"])) == (len(SIDES), len(GREYS))
    (line,) = [json.loads(text) for text in load_site(site_yaml).audit.read_text().splitlines()]
    assert line["event"] == "counted" and line["classes"]["0"]["train_images"] == 9


def test_a_policy_gives_none_unless_it_says_so(tmp_path: Path) -> None:
    for policy in ("fewest_images: 5\n", POLICY + 'hours: "00:00-00:01"\nweekdays: []\n'):
        site_yaml = hospital(tmp_path, {"0": 9}, policy)
        assert ask(site_yaml).error.code == PolicyError.code
    grid = LocalGrid(app, nodes=1, run_config={})
    (reply,) = grid.send_and_receive([Message(RecordDict(), grid.get_node_ids()[0], STATISTICS, ttl=60.0)])
    assert reply.error.code == ConfigError.code


@pytest.mark.parametrize("stricter", ["fewest_images: 8", "fewest_images: 5\nfewest_patients: 8"])
def test_what_was_told_under_another_policy_is_not_told_again(tmp_path: Path, stricter: str) -> None:
    """Nor is anything that tells of seven images by what is missing."""
    site_yaml = hospital(tmp_path, {"0": 9, "1": 7})
    assert not ask(site_yaml).has_error()
    (site_yaml.parent / "policy.yaml").write_text(f"{stricter}\nstatistics: true\n")
    assert ask(site_yaml).error.code == PolicyError.code
    settings = load_site(site_yaml)
    with pytest.raises(PolicyError, match=rf"told of fewer .*'1'.* remove {settings.memory.folder / TOLD}"):
        own_statistics(settings, load_policy(settings.policy))
    (settings.memory.folder / TOLD).unlink()
    assert dict(ask(site_yaml).content.config_records["statistics"])["classes"] == ["0"]


TABLES = ("train_patients", "test_images", "test_patients")
GOOD = Statistics(("a",), (20,), (9,), (0,), (0,), (20, *[0] * 7), (10, 10, *[0] * 6))


def changed(**fields: Any) -> RecordDict:
    record = {name: list(value) for name, value in vars(GOOD).items()}
    return RecordDict({"statistics": ConfigRecord(record | fields)})


def test_the_door_lets_out_what_is_declared_and_no_small_count() -> None:
    let_statistics_out(encode_statistics(GOOD), Fewest(5, 3))
    forbidden = {
        "too few of a class": changed(train_images=[20, 4], classes=["a", "b"], **{table: [0, 0] for table in TABLES}),
        "too few patients": changed(train_patients=[2]),
        "too few in a bin": changed(greys=[16, 4, *[0] * 6]),
        "a bin that the others tell": changed(greys=[10, 7, *[0] * 6]),
        "more than there are": changed(sides=[21, *[0] * 7]),
        "another key": changed(note=["x"]),
        "a name that is text in numbers": changed(train_images=["20"]),
        "a hidden name": changed(classes=["a\u200b"]),
        "too many bins": changed(sides=[20, *[0] * 8]),
        "another record": RecordDict({**encode_statistics(GOOD), "b": ConfigRecord()}),
    }
    for what, content in forbidden.items():
        with pytest.raises(ProtocolError):
            let_statistics_out(content, Fewest(5, 3))
            pytest.fail(f"{what} left")
