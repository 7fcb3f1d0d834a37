"""What is said to grow, or not to, does so where bytes decide it, on ranges as small as they can be."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from simulations.bench.growth import QUANTITIES, Growth, Measured, Shape, exponent, growths, measure, write_numbers
from simulations.bench.growth_command import figure, rows
from simulations.cli import app


@lru_cache
def taken(shape: Shape) -> Measured:
    return measure(shape, {})


def along(points: Sequence[int], shapes: Sequence[Shape]) -> Mapping[str, Growth]:
    return growths(points, [taken(shape) for shape in shapes])


def test_an_exponent_is_the_slope_between_logarithms() -> None:
    assert exponent([1, 10, 100], [3.0, 300.0, 30_000.0]) == 2
    assert exponent([1, 7], [5.0, 5.0]) == 0
    assert exponent([2, 8], [6.0, 3.0]) == -0.5
    # Through (0, 0), (1, 0) and (2, 3), in powers of ten: the slope is (2 - 1) * 3 / 2 = 1.5.
    assert exponent([1, 10, 100], [1.0, 1.0, 1000.0]) == 1.5
    assert exponent([1, 2], [0.0, 1.0]) is None
    assert exponent([4], [1.0]) is None
    # A constant part hides the growth at first: 100 + x.
    points, values = [1, 100, 10_000], (101.0, 200.0, 10_100.0)
    hidden = growths(points, [dict.fromkeys(QUANTITIES, value) for value in values])["memory"]
    assert hidden.values == values
    assert (hidden.exponent, hidden.last) == (pytest.approx(0.5, abs=1e-3), pytest.approx(0.852, abs=1e-3))


def test_pictures_of_numbers_are_all_different(tmp_path: Path) -> None:
    write_numbers(tmp_path / "images", classes=12, images=20)
    table = [line.split(",") for line in (tmp_path / "images" / "manifest.csv").read_text().split()[1:]]
    assert {(name[:3], label, split) for name, label, split in table} == {
        (f"{label:03d}", f"{label:03d}", split) for label in range(12) for split in ("train", "test")
    }
    assert [split for _, _, split in table].count("test") == 12 * 2  # a tenth of 20
    pictures = {np.asarray(Image.open(tmp_path / "images" / name)).tobytes() for name, _, _ in table}
    assert len(pictures) == 12 * 22
    assert len(next(iter(pictures))) == 8 * 24


def test_by_tasks_nothing_deployed_grows_but_a_head_for_each() -> None:
    points = [1, 3]
    found = along(points, [Shape(tasks=n, images=8, exemplars=12) for n in points])
    assert found["network"].exponent == 0
    # Two classes and "others", 64 features and a bias, in float32.
    assert found["heads"].values == tuple(3 * 65 * 4 * n for n in points)
    assert found["heads"].exponent == 1
    # The server keeps the adapters of every task.
    checkpoints = found["checkpoint"].values
    assert checkpoints[1] > 1.5 * checkpoints[0]


def test_by_sites_what_a_site_sends_stays_the_same() -> None:
    points = [1, 4]
    found = along(points, [Shape(images=2 * n, sites=n, exemplars=2 * n) for n in points])
    assert found["up"].exponent == found["down"].exponent == found["network"].exponent == 0
    assert found["messages"].exponent == pytest.approx(0, abs=1e-3)
    # One task of four rounds: adapters, with their head, come up in one, the task's head in another. An adapter has two
    # convolutions of 3 x 3 from 8 to 8, 16 to 16 and 32 to 32 channels, each with a batch norm of four vectors, and one
    # number of its own; a head is 3 x 65 numbers.
    adapters = sum(2 * (9 * width**2 + 4 * width) + 1 for width in (8, 16, 32))
    assert found["up"].values[0] == 4 * (adapters + 2 * 3 * 65) / 4


def test_by_classes_heads_grow_and_a_test_tells_no_zeros() -> None:
    points = [4, 40]
    found = along(points, [Shape(tasks=2, classes=n // 2, images=40 // n * 2, exemplars=80) for n in points])
    assert found["network"].exponent == 0
    # A row for each class, and one of "others" in each of two heads.
    assert found["heads"].values == tuple(4 * 65 * (n + 2) for n in points)
    # Of the C x C counts of a test, of 8 bytes each, only those that are not 0 come up, once in the task's five rounds.
    columns = (found[name].values for name in ("messages", "up", "down"))
    beyond = [whole - up - down for whole, up, down in zip(*columns, strict=True)]
    assert 0 < beyond[1] - beyond[0] < (40**2 - 4**2) * 8 / 5


def test_the_memory_on_disk_grows_with_the_exemplars_alone() -> None:
    points = [20, 40, 80]
    found = along(points, [Shape(images=40, sites=1, exemplars=n) for n in points])["exemplars"]
    first, second = (later - earlier for earlier, later in pairwise(found.values))
    # Of grey pictures of 16 x 16 pixels, each with a label of 8 bytes, and with its name and day in some 40.
    assert second == pytest.approx(2 * first, rel=0.02)
    assert 256 + 8 < first / 20 < 256 + 8 + 60
    assert found.last == pytest.approx(1, abs=0.1)


def test_the_table_and_the_figure_show_every_quantity_that_there_is() -> None:
    points = [1, 10, 100]
    grown = {name: Growth((5.0, 50.0, 500.0), 1.0, 1.0) for name in QUANTITIES}
    grown |= {"network": Growth((7e6,) * 3, 0.0, 0.0), "exemplars": Growth((0.0,) * 3, None, None)}
    table = {row[0]: row[1:] for row in rows(points, grown)}
    assert set(table) == {QUANTITIES[name] for name in QUANTITIES if name != "exemplars"}
    assert table[QUANTITIES["seconds"]] == ["× 1.00", "× 10.00", "× 100.00", "1.00", "1.00"]
    assert table[QUANTITIES["network"]] == ["7.0 MB", "7.0 MB", "7.0 MB", "0.00", "0.00"]
    drawn = figure({"sites": (points, grown), "tasks": (points, grown)})
    assert [panel.get_xlabel() for panel in drawn.figure.axes] == ["sites", "tasks"]
    for panel in drawn.figure.axes:
        lines = {line.get_label(): list(line.get_ydata()) for line in panel.get_lines()[1:]}
        assert list(lines) == [name for name in QUANTITIES if name != "exemplars"]
        assert (lines["memory"], lines["network"]) == ([1, 10, 100], [1, 1, 1])
    assert drawn.svg == figure({"sites": (points, grown), "tasks": (points, grown)}).svg


def test_the_command_runs_each_point_in_a_process_of_its_own(tmp_path: Path) -> None:
    words = [
        "bench",
        "growth",
        "--only",
        "tasks=1",
        "--out",
        str(tmp_path / "out"),
        "--set",
        "memory.quota_megabytes=512",
    ]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "out" / "growth.json").read_text())
    measured = taken(Shape())
    for name in ("up", "down", "exemplars", "network", "heads"):
        assert found["axes"]["tasks"][name]["values"] == [measured[name]]
    assert found["axes"]["tasks"]["memory"]["values"][0] > 0
    assert found["command"] == "dynammo-sim bench growth --only tasks=1 --set memory.quota_megabytes=512"
    assert (tmp_path / "out" / "growth.svg").read_text().startswith("<svg")
    assert (tmp_path / "out" / "growth.png").stat().st_size > 0


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["--only", "task"], "tasks"),
        (["--only", "tasks=two"], "not a list of integers"),
        (["--only", "classes=4,2000"], "2 to 1000"),
        (["--set", "method.name=nothing"], "nothing"),
    ],
)
def test_what_cannot_be_measured_is_refused_at_once(words: list[str], what: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["bench", "growth", "--out", str(tmp_path / "out"), *words])
    assert result.exit_code == 1
    assert what in " ".join(result.stderr.split())
    assert not (tmp_path / "out").exists()
