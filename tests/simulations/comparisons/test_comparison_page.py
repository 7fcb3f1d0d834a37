"""The page about several runs: made from real runs, complete, self-contained, and the same as the tables beside it."""

from __future__ import annotations

import csv
import io
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from rich.console import Console
from rich.filesize import decimal
from small_runs import SITES, Finished, make_pages_small, run_small, small_config
from typer.testing import CliRunner

from dynammo_core.scoring.reliability import MEASURES
from dynammo_core.support.errors import RunError
from server.run_directory.run_files import RunFiles
from simulations.cli import app
from simulations.comparisons.compare import METRICS, Group, Result, Sweep
from simulations.comparisons.costs import tables
from simulations.comparisons.page import write_page
from simulations.comparisons.plots import looks, mean_and_deviation, sweep_curves
from simulations.comparisons.table import Spread

COMMAND = "dynammo-sim compare configs/compare/small.yaml"
CHANCE_NAME = "replay <b>& co</b>"
WORDS_BELOW = {
    "curves": {"after task", "accuracy, %"},
    "confusion": {"0"},
    "macs": {"last accuracy, %", "GMAC of one prediction"},
    "bytes": {"last accuracy, %", "MB over the network, all sites and rounds"},
}
SVG = "{http://www.w3.org/2000/svg}"
Write = Callable[..., Path]


class Page(HTMLParser):
    """What a reader sees of a page, and what a browser would fetch for it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.tags: list[str] = []
        self.words = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.fetched += [value for name, value in attrs if name in {"src", "href", "xlink:href"} and value]

    def handle_data(self, data: str) -> None:
        self.words += " " + data

    @property
    def text(self) -> str:
        return " ".join(self.words.split())


@pytest.fixture(scope="module")
def groups(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> list[Group]:
    """Two rows under one setting, the first with two seeds, and a row under another that has not finished."""
    second = run_small(small_config("replay", {"seed": 2}), tmp_path_factory.mktemp("seed2")).path
    runs = {"dynammo": [finished("dynammo").path], "replay": [finished("replay").path, second]}
    results = {
        method: tuple(Result(seed, path, RunFiles.read(path).summary) for seed, path in enumerate(paths, start=1))
        for method, paths in runs.items()
    }
    dynammo, replay = (small_config(method).method for method in ("dynammo", "replay"))
    return [
        Group("three sites", CHANCE_NAME, replay, results["replay"]),
        Group("three sites", "dynammo", dynammo, results["dynammo"]),
        Group("five sites", "dynammo", dynammo, ()),
    ]


@pytest.fixture
def write(groups: list[Group], monkeypatch: pytest.MonkeyPatch) -> Write:
    make_pages_small(monkeypatch)

    def write(folder: Path, **changes: Any) -> Path:
        given = {"title": "small", "command": COMMAND, "groups": groups, "metric": METRICS["accuracy"]}
        return write_page(folder, **{**given, "missing": ["five sites · dynammo · seed 1"], **changes})

    return write


def rows(folder: Path, name: str) -> list[dict[str, str]]:
    with (folder / "tables" / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_every_figure_says_what_made_it(write: Write, groups: list[Group], tmp_path: Path) -> None:
    page = Page(write(tmp_path))
    hashes = [[result.summary["config_hash"][:8] for result in group.results] for group in groups]
    both = f"{CHANCE_NAME}: 1 → {hashes[0][0]}, 2 → {hashes[0][1]}; dynammo: 1 → {hashes[1][0]}."
    made = page.text.split(f"Made by {COMMAND}")[1:]
    # The table, its empty one, the curves, two matrices of a first seed, accuracy and cost, growth, the bytes
    assert len(made) == 8
    own = [(3, f"1 → {hashes[0][0]}."), (4, f"1 → {hashes[1][0]}.")]
    for place, wanted in ((0, both), (2, both), *own, (5, both), (7, both)):
        assert f"by seed: {wanted}" in made[place]
    assert "no seed" in made[6]


def test_the_page_needs_nothing_but_itself_and_escapes_names(write: Write, tmp_path: Path) -> None:
    path = write(tmp_path)
    page = Page(path)
    assert page.tags.count("svg") == 5
    assert all(address.startswith(("#", "data:image/png;base64,")) for address in page.fetched)
    assert not {"script", "link", "img", "b"} & set(page.tags)
    assert "://" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", path.read_text(encoding="utf-8"))
    assert CHANCE_NAME in page.text
    assert "Missing: five sites · dynammo · seed 1" in page.text


def test_figures_lie_beside_the_page_as_svg_and_png(write: Write, tmp_path: Path) -> None:
    write(tmp_path)
    names = ["bytes-1-three-sites", "confusion-1-three-sites-replay-b-co-b", "confusion-2-three-sites-dynammo"]
    names += ["curves-1-three-sites", "macs-1-three-sites"]
    found = sorted((tmp_path / "plots").iterdir())
    assert [path.name for path in found] == [f"{name}.{kind}" for name in names for kind in ("png", "svg")]
    for path in found:
        if path.suffix == ".png":
            assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
        else:
            drawn = ElementTree.fromstring(path.read_bytes())
            assert drawn.tag == f"{SVG}svg"
            words = {text for element in drawn.iter(f"{SVG}text") if (text := "".join(element.itertext()).strip())}
            kind = path.name.partition("-")[0]
            rows_of_page = set() if kind == "confusion" else {"dynammo", CHANCE_NAME}
            assert words >= rows_of_page | WORDS_BELOW[kind]


def test_tables_follow_from_the_runs(write: Write, groups: list[Group], tmp_path: Path) -> None:
    write(tmp_path)
    first, second = groups[0].results
    averages = [result.summary["average_incremental_accuracy"] for result in (first, second)]
    line, control, unfinished = rows(tmp_path, "table.csv")
    assert float(line["average_mean"]) == pytest.approx(sum(averages) / 2, abs=1e-4)
    # Two values deviate from their mean by half of their difference, and the sample deviation is that times sqrt(2).
    assert float(line["average_deviation"]) == pytest.approx(abs(averages[0] - averages[1]) / 2**0.5, abs=1e-4)
    theirs = groups[1].results[0].summary["average_incremental_accuracy"]
    assert float(control["average_difference_mean"]) == pytest.approx(theirs - averages[0], abs=1e-4)  # of seed 1
    assert (unfinished["seeds"], unfinished["average_mean"]) == ("0", "")
    assert [row["config_hash"] for row in rows(tmp_path, "runs.csv")] == [
        result.summary["config_hash"] for group in groups for result in group.results
    ]
    curve = [float(row["value"]) for row in rows(tmp_path, "curves.csv") if row["row"] == "dynammo"]
    assert curve == groups[1].results[0].summary["accuracy_after_tasks"]
    counted = [int(row["count"]) for row in rows(tmp_path, "confusion.csv") if row["row"] == "dynammo"]
    assert sum(counted) == 40  # four classes with ten test images each
    cost = rows(tmp_path, "cost.csv")
    network = "small_cnn, 16 × 16 pixels, 2 classes a task"
    assert [(row["backbone"], row["row"], row["tasks"]) for row in cost] == [
        (network, name, tasks) for name in (CHANCE_NAME, "dynammo") for tasks in ("1", "5", "10")
    ]


def test_reliability_stands_beside_accuracy(write: Write, groups: list[Group], tmp_path: Path) -> None:
    # Two tasks: after the second nothing is to come, so the first alone has an AUROC; a run of before has nothing.
    errors = ([9.0, 4.0], [9.0, 7.0])
    results = [
        replace(
            result,
            summary=result.summary | {"calibration_error_after_tasks": own, "open_set_auroc_after_tasks": [60.5, None]},
        )
        for result, own in zip(groups[0].results, errors, strict=True)
    ]
    before = {key: value for key, value in groups[1].results[0].summary.items() if not key.startswith(("cal", "open"))}
    changed = [
        replace(groups[0], results=tuple(results)),
        replace(groups[1], results=(replace(groups[1].results[0], summary=before),)),
        groups[2],
    ]
    page = Page(write(tmp_path, groups=changed))
    line, without, unfinished = rows(tmp_path, "table.csv")
    assert (line["calibration_error_mean"], line["calibration_error_deviation"]) == ("5.5", "2.1213")  # 3 / sqrt(2)
    assert (line["open_set_auroc_mean"], line["open_set_auroc_deviation"]) == ("60.5", "0.0")
    measured = [result.summary["open_set_fpr95_after_tasks"][0] for result in groups[0].results]
    assert float(line["open_set_fpr95_mean"]) == pytest.approx(sum(measured) / 2, abs=1e-4)
    for row in (without, unfinished):
        assert [row[f"{name}_mean"] for name in MEASURES] == ["", "", ""]
    each = rows(tmp_path, "runs.csv")
    assert [row["calibration_error"] for row in each] == ["4.0", "7.0", ""]
    assert [row["open_set_auroc"] for row in each] == ["60.5", "60.5", ""]
    assert "Δ last, points ECE, points AUROC, % FPR95, %" in page.text
    fpr95 = str(Spread.of(measured))
    assert f"5.5 ± 2.1 60.5 ± 0.0 {fpr95} dynammo 1: 1" in page.text
    # Empty is what was not measured, a dash what has not run; a first row has no difference.
    html = (tmp_path / "index.html").read_text(encoding="utf-8")
    cells = [
        re.findall(r'<td class="n">([^<]*)</td>', row) for row in html.splitlines() if 'scope="row">dynammo' in row
    ]
    assert cells[0][-3:] == ["", "", ""]
    assert cells[1] == ["0", "", "–", "–", "–", "", "", "–", "–", "–"]
    images = sum(groups[0].results[0].summary["test_images_after_tasks"][-1:])
    assert (line["test_images_fewest"], unfinished["test_images_fewest"]) == (str(images), "")
    assert cells[0][:2] == ["1: 1", str(images)]


def test_bytes_are_those_of_the_summaries(write: Write, groups: list[Group], tmp_path: Path) -> None:
    page = Page(write(tmp_path))
    own = [row for row in rows(tmp_path, "bytes.csv") if row["row"] == "dynammo"]
    assert {(row["task"], row["site"]) for row in own} == {(str(t), str(s)) for t in (1, 2) for s in range(SITES)}
    summary = groups[1].results[0].summary
    for way in ("bytes_up", "bytes_down"):
        assert sum(int(row[way]) for row in own) == summary[way]
    shown = f"dynammo {SITES} {decimal(summary['bytes_up'])} {decimal(summary['bytes_down'])}"
    assert shown in page.text
    by_task = [
        [decimal(sum(int(row[way]) for row in own if row["task"] == task)) for way in ("bytes_up", "bytes_down")]
        for task in ("1", "2")
    ]
    assert "dynammo " + " ".join(f"{up} / {down}" for up, down in by_task) in page.text


def test_accuracy_stands_beside_what_the_runs_cost(write: Write, groups: list[Group], tmp_path: Path) -> None:
    page = Page(write(tmp_path))
    first, second = (result.summary for result in groups[0].results)
    row, ours = rows(tmp_path, "accuracy_and_cost.csv")  # what has not run has no cost
    assert float(row["last_mean"]) == pytest.approx((first["last_accuracy"] + second["last_accuracy"]) / 2)
    assert float(row["macs"]) == first["macs_per_image"] == second["macs_per_image"]
    assert float(row["bytes"]) == sum(one[way] for one in (first, second) for way in ("bytes_up", "bytes_down")) / 2
    only = groups[1].results[0].summary
    assert (float(ours["parameters"]), float(ours["seconds"])) == (only["deployed_parameters"], only["seconds"])
    assert f"dynammo {only['last_accuracy']:.1f} {only['macs_per_image'] / 1e9:.3g} " in page.text
    shown = io.StringIO()
    Console(width=80, file=shown).print(*tables(groups, METRICS["accuracy"], "small"))
    assert max(map(len, shown.getvalue().splitlines())) <= 80
    assert f" {only['bytes_up'] / 1e6:.3g} " in shown.getvalue()


def test_the_metric_decides_the_numbers(write: Write, groups: list[Group], tmp_path: Path) -> None:
    page = Page(write(tmp_path, metric=METRICS["mean_class_recall"]))
    summary = groups[1].results[0].summary
    _, line, _ = rows(tmp_path, "table.csv")
    assert float(line["average_mean"]) == pytest.approx(summary["average_mean_class_recall"], abs=1e-4)
    assert float(line["last_mean"]) == pytest.approx(summary["mean_class_recall"], abs=1e-4)
    values = [float(row["value"]) for row in rows(tmp_path, "curves.csv") if row["row"] == "dynammo"]
    assert values == summary["mean_class_recall_after_tasks"]
    assert "mean class recall, %" in page.text


def test_same_runs_give_the_same_files(write: Write, tmp_path: Path) -> None:
    for folder in ("one", "other"):
        write(tmp_path / folder)
    one, other = (
        {path.relative_to(tmp_path / folder): path.read_bytes() for path in (tmp_path / folder).rglob("*.*")}
        for folder in ("one", "other")
    )
    assert one == other


GRID = Sweep(
    "alpha",
    "sites",
    {"three sites": ("0.5", "3"), "iid": ("iid", "3"), "five sites": ("0.5", "5")},
)


def test_settings_that_form_a_grid_have_a_figure_for_each_row(write: Write, tmp_path: Path) -> None:
    page = Page(write(tmp_path, sweep=GRID))
    assert "Over alpha and sites" in page.text
    assert page.tags.count("svg") == 2
    names = ["sweep-1-replay-b-co-b", "sweep-2-dynammo"]
    assert sorted(path.stem for path in (tmp_path / "plots").glob("*.svg")) == names
    drawn = ElementTree.parse(tmp_path / "plots" / f"{names[1]}.svg")
    words = {text for element in drawn.iter(f"{SVG}text") if (text := "".join(element.itertext()).strip())}
    assert words >= {"alpha", "0.5", "iid", "sites 3", "last accuracy, %"}


def test_a_line_of_the_grid_has_a_value_for_each_seed_and_place(groups: list[Group]) -> None:
    first, second = groups[0].results
    own = [groups[0], Group("iid", groups[0].row, groups[0].method, (second,))]
    ticks, curves = sweep_curves(own, METRICS["accuracy"], GRID)
    last = [result.summary["last_accuracy"] for result in (first, second)]
    assert ticks == ["0.5", "iid"]
    assert list(curves) == ["sites 3"]
    np.testing.assert_array_equal(curves["sites 3"], [[last[0], np.nan], [last[1], last[1]]])


def test_nothing_finished_is_a_page_all_the_same(write: Write, groups: list[Group], tmp_path: Path) -> None:
    page = Page(write(tmp_path, groups=groups[2:]))
    assert "svg" not in page.tags
    assert "0 finished runs" in page.text
    assert not (tmp_path / "plots").exists()


def test_a_broken_run_is_named_and_the_old_page_stays(write: Write, groups: list[Group], tmp_path: Path) -> None:
    before = write(tmp_path).read_bytes()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("name: x\n")
    broken = Result(1, tmp_path / "run", groups[1].results[0].summary)
    with pytest.raises(RunError, match="run holds no confusion matrix"):
        write(tmp_path, groups=[Group("", "dynammo", groups[1].method, (broken,))])
    assert (tmp_path / "index.html").read_bytes() == before


def test_the_band_of_a_curve_is_the_sample_deviation() -> None:
    middle, spread = mean_and_deviation(np.array([[80.0, np.nan, 50.0], [90.0, 70.0, np.nan]]))
    assert middle.tolist() == [85.0, 70.0, 50.0]
    assert spread.tolist() == pytest.approx([50**0.5, 0.0, 0.0])  # 5 and 5 from 85: sqrt((25 + 25) / (2 - 1))
    assert mean_and_deviation(np.array([[80.0, 60.0]]))[1].tolist() == [0.0, 0.0]


def test_report_compares_several_runs_and_reports_on_one(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_pages_small(monkeypatch)
    directories = [str(finished(method).path) for method in ("dynammo", "replay")]
    result = CliRunner().invoke(app, ["report", *directories, "--output", str(tmp_path / "both")])
    assert result.exit_code == 0, result.output
    text = Page(tmp_path / "both" / "index.html").text
    command = f"dynammo-sim report {' '.join(directories)} --output {tmp_path / 'both'}"
    assert f"Made by {command}" in text
    assert CliRunner().invoke(app, ["report", directories[0]]).stdout.strip() == f"{directories[0]}/report.html"
    wrong = CliRunner().invoke(app, ["report", *directories, "--metric", "recal"])
    assert (wrong.exit_code, "mean_class_recall" in wrong.stderr) == (1, True)


def test_each_run_is_one_click_away_and_few_seeds_prove_nothing(
    write: Write, groups: list[Group], tmp_path: Path
) -> None:
    first = groups[0].results[0]
    results = []
    for seed, gain in enumerate((4.0, 5.0, 6.0, 7.0, 8.0, 9.0), start=1):
        directory = tmp_path / "runs" / f"run {seed}"
        shutil.copytree(first.directory, directory)
        (directory / "report.html").write_text("the page of a run")
        pair = [Result(seed, directory, first.summary | {"last_accuracy": last}) for last in (50.0, 50.0 + gain)]
        results.append(pair)
    pairs = [replace(group, results=tuple(own[place] for own in results)) for place, group in enumerate(groups[:2])]
    page = Page(write(tmp_path / "page", groups=pairs, missing=[]))
    assert "dynammo p = 0.0312 (6 seeds, which cannot give less than 0.031)" in page.text  # 2 of 64 signs
    links = [address for address in page.fetched if not address.startswith(("#", "data:"))]
    assert links == [f"../runs/run%20{seed}/report.html" for seed in range(1, 7)] * 2
    five = [replace(group, results=group.results[:5]) for group in pairs]
    text = Page(write(tmp_path / "five", groups=five, missing=[])).text
    assert "No row has 6 seeds in common with the first one" in text
    assert "p =" not in text


def test_no_two_of_many_rows_look_the_same() -> None:
    assert len({looks(place) for place in range(49)}) == 49
