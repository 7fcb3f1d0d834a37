"""Comparisons: rows, settings and seeds as data, only missing runs run, figures paired by seed."""

from __future__ import annotations

import csv
import io
import json
import sys
from multiprocessing.context import ForkServerContext
from pathlib import Path
from statistics import mean

import pytest
import yaml
from rich.console import Console
from small_runs import events, make_pages_small, small_settings
from typer.testing import CliRunner

from dynammo_core.code_identity import project_hash
from dynammo_core.configuration.config import load_config
from dynammo_core.support.errors import ConfigError
from simulations.cli import app
from simulations.comparisons.compare import METRICS, Cell, Comparison, is_comparison, load_comparison, missing_cells
from simulations.comparisons.process_pool import part_of
from simulations.comparisons.reuse import take_over
from simulations.comparisons.run_groups import measure, summaries_of
from simulations.comparisons.table import Spread, lines, table

pytestmark = pytest.mark.usefixtures("small_pages")


def write_comparison(folder: Path, **changes: object) -> Path:
    (folder / "small.yaml").write_text(yaml.safe_dump(small_settings()))
    comparison: dict[str, object] = {
        "base": "small.yaml",
        "seeds": [1, 2],
        "overrides": {"method.adapt.epochs": 1},
        "rows": {"dynammo": {}, "no adapters": {"method.adapters": False}},
    }
    file = folder / "comparison.yaml"
    file.write_text(yaml.safe_dump({**comparison, **changes}, sort_keys=False))
    return file


def pretend(cell: Cell, runs: Path, *, average: float, code: str | None = None, leading: str = "last_accuracy") -> None:
    """A finished run's summary, as `server/run/results.py` leaves it."""
    summary = {
        "average_incremental_accuracy": average,
        "last_accuracy": average - 10,
        "average_mean_class_recall": average - 20,
        "mean_class_recall": average - 30,
        "leading_metric": leading,
        "forgetting": 1.0,
        "status": "completed",
        "config_hash": cell.config.content_hash,
        "code_hash": code or project_hash(),
    }
    cell.directory(runs).mkdir(parents=True)
    (cell.directory(runs) / "summary.json").write_text(json.dumps(summary))


def printed(comparison: Comparison, runs: Path) -> list[str]:
    buffer = io.StringIO()
    groups = comparison.groups(runs)
    metric = measure(comparison.metric, summaries_of(groups))
    Console(width=80, file=buffer).print(table(groups, metric, "small"))
    return buffer.getvalue().splitlines()


def test_every_row_meets_every_seed_and_the_common_overrides(tmp_path: Path) -> None:
    cells = load_comparison(write_comparison(tmp_path)).cells
    assert [(cell.setting, cell.row, cell.seed) for cell in cells] == [
        ("", "dynammo", 1),
        ("", "no adapters", 1),
        ("", "dynammo", 2),
        ("", "no adapters", 2),
    ]
    assert [cell.config.method.adapters for cell in cells] == [True, False, True, False]
    assert {cell.config.method.adapt.epochs for cell in cells} == {1}
    assert [cell.config.seed for cell in cells] == [1, 1, 2, 2]


def test_every_row_meets_every_setting_and_has_the_last_word(tmp_path: Path) -> None:
    file = write_comparison(
        tmp_path,
        seeds=[1],
        overrides={"federation.sites": 2, "memory.exemplars": 30},
        settings={"as said": {}, "five sites": {"federation.sites": 5, "memory.exemplars": 40}},
        rows={"dynammo": {}, "replay": {"method.name": "replay", "memory.exemplars": 50}},
    )
    found = [
        (cell.label, cell.config.method.name, cell.config.federation.sites, cell.config.memory.exemplars)
        for cell in load_comparison(file).cells
    ]
    assert found == [
        ("as said · dynammo · seed 1", "dynammo", 2, 30),
        ("as said · replay · seed 1", "replay", 2, 50),
        ("five sites · dynammo · seed 1", "dynammo", 5, 40),
        ("five sites · replay · seed 1", "replay", 5, 50),
    ]


GRID = {
    "alpha": {"0.1": {"federation.alpha": 0.1}, "iid": {"federation.partition": "iid"}},
    "sites": {"2": {"federation.sites": 2}, "5": {"federation.sites": 5}},
}


def test_a_grid_is_every_pair_of_its_values(tmp_path: Path) -> None:
    comparison = load_comparison(write_comparison(tmp_path, seeds=[1], rows={"dynammo": {}}, grid=GRID))
    found = [
        (cell.setting, federation.partition, federation.alpha, federation.sites)
        for cell in comparison.cells
        if (federation := cell.config.federation)
    ]
    assert found == [
        ("alpha 0.1, sites 2", "dirichlet", 0.1, 2),
        ("alpha 0.1, sites 5", "dirichlet", 0.1, 5),
        ("alpha iid, sites 2", "iid", 0.5, 2),
        ("alpha iid, sites 5", "iid", 0.5, 5),
    ]
    assert comparison.sweep is not None
    assert comparison.sweep.points["alpha iid, sites 2"] == ("iid", "2")
    assert load_comparison(write_comparison(tmp_path)).sweep is None


def test_the_values_of_a_key_are_rows(tmp_path: Path) -> None:
    grid = {"federation.sites": [2, 5]}
    file = write_comparison(tmp_path, seeds=[1], rows={}, grid=grid)
    comparison = load_comparison(file)
    assert [(cell.row, cell.config.federation.sites) for cell in comparison.cells] == [("2", 2), ("5", 5)]
    assert comparison.sweep is None
    assert is_comparison(file)
    rows = {"dynammo": {}, "no adapters": {"method.adapters": False}}
    both = load_comparison(write_comparison(tmp_path, seeds=[1], rows=rows, grid=grid))
    assert [cell.row for cell in both.cells] == ["dynammo, 2", "dynammo, 5", "no adapters, 2", "no adapters, 5"]


@pytest.mark.parametrize(
    "changes",
    [
        {"grid": {**GRID, "sites": {}}},
        {"grid": {**GRID, "seed": [1, 2]}},
        {"grid": GRID, "settings": {"five": {"federation.sites": 5}}},
    ],
)
def test_a_grid_has_one_axis_or_two_and_two_have_no_settings_beside_them(
    tmp_path: Path, changes: dict[str, object]
) -> None:
    with pytest.raises(ConfigError, match=r"grid: .*(one axis or two|two axes)"):
        load_comparison(write_comparison(tmp_path, **changes))


def test_means_deviations_and_paired_differences(tmp_path: Path) -> None:
    comparison, runs = load_comparison(write_comparison(tmp_path)), tmp_path / "runs"
    for cell, average in zip(comparison.cells, (80.0, 78.0, 90.0, 86.0), strict=True):
        pretend(cell, runs, average=average)
    shown = printed(comparison, runs)
    (dynammo,) = [line for line in shown if "dynammo" in line]
    (control,) = [line for line in shown if "no adapters" in line]
    # mean(80, 90) = 85, sample deviation 5 * sqrt(2) = 7.1; the pairs 78 - 80 and 86 - 90: mean -3, deviation 1.4
    assert "85.0 ± 7.1" in dynammo
    assert "82.0 ± 5.7" in control
    assert "-3.0 ± 1.4" in control


def test_the_metric_of_the_file_decides_what_average_and_last_are(tmp_path: Path) -> None:
    comparison, runs = load_comparison(write_comparison(tmp_path, metric="mean_class_recall")), tmp_path / "runs"
    pretend(comparison.cells[0], runs, average=80.0)
    first, _ = lines(comparison.groups(runs), measure(comparison.metric, []))
    assert (first.average, first.last, first.seeds) == (Spread(60.0, None), Spread(50.0, None), (1,))
    assert any("mean class recall" in line for line in printed(comparison, runs))


def test_without_a_metric_uneven_classes_are_compared_by_the_mean_class_recall(tmp_path: Path) -> None:
    comparison, runs = load_comparison(write_comparison(tmp_path)), tmp_path / "runs"
    pretend(comparison.cells[0], runs, average=80.0)
    assert not any("mean class recall" in line for line in printed(comparison, runs))
    pretend(comparison.cells[1], runs, average=80.0, leading="mean_class_recall")
    shown = printed(comparison, runs)
    assert any("mean class recall" in line for line in shown)
    assert any("dynammo" in line and "60.0" in line for line in shown)


def test_pairs_are_made_by_seed_and_setting_where_runs_are_missing(tmp_path: Path) -> None:
    file = write_comparison(tmp_path, settings={"two": {"federation.sites": 2}, "three": {"federation.sites": 3}})
    comparison, runs = load_comparison(file), tmp_path / "runs"
    averages = {
        ("two", "dynammo", 2): 90.0,
        ("two", "no adapters", 1): 78.0,
        ("two", "no adapters", 2): 86.0,
        ("three", "dynammo", 1): 70.0,
        ("three", "no adapters", 1): 75.0,
    }
    for cell in comparison.cells:
        if (average := averages.get((cell.setting, cell.row, cell.seed))) is not None:
            pretend(cell, runs, average=average)
    found = {(line.setting, line.row): line for line in lines(comparison.groups(runs), METRICS["accuracy"])}
    assert found["two", "no adapters"].average_difference == Spread(86.0 - 90.0, None)  # of seed 2 alone
    assert found["three", "no adapters"].average_difference == Spread(75.0 - 70.0, None)
    assert found["two", "dynammo"].average_difference is None
    missing = [cell.label for cell in missing_cells(comparison.cells, runs).values()]
    assert missing == ["two · dynammo · seed 1", "three · dynammo · seed 2", "three · no adapters · seed 2"]


def test_the_table_fits_a_terminal(tmp_path: Path) -> None:
    comparison, runs = load_comparison(write_comparison(tmp_path)), tmp_path / "runs"
    for cell, average in zip(comparison.cells, (99.0, 20.0, 20.0, 99.0), strict=True):
        pretend(cell, runs, average=average)
    shown = printed(comparison, runs)
    assert "percent (mean ± deviation over seeds)" in " ".join("\n".join(shown).split())
    (control,) = [line for line in shown if "no adapters" in line]
    # The pairs 20 - 99 and 99 - 20: mean 0, deviation 79 * sqrt(2) = 111.7, the widest that there is
    assert "0.0 ± 111.7" in control


@pytest.mark.parametrize("changed", ["code", "file"])
def test_a_run_by_other_code_or_without_a_whole_summary_does_not_count(tmp_path: Path, changed: str) -> None:
    (cell, *_) = load_comparison(write_comparison(tmp_path)).cells
    pretend(cell, tmp_path / "runs", average=80.0, code="0" * 64 if changed == "code" else None)
    if changed == "file":
        assert cell.summary(tmp_path / "runs") is not None
        (cell.directory(tmp_path / "runs") / "summary.json").write_text('{"status": "comp')
    assert cell.summary(tmp_path / "runs") is None


@pytest.mark.slow
def test_the_command_runs_what_is_missing_and_nothing_twice(tmp_path: Path) -> None:
    rows = {"dynammo": {}, "no adapters": {"method.adapters": False}}
    lost = {"data.dataset": "manifest", "data.root": "/nowhere"}
    file, runs = write_comparison(tmp_path, seeds=[1], rows=rows | {"lost": lost}), tmp_path / "runs"
    line = ["compare", str(file), "--runs", str(runs), "--workers", "1"]
    first = CliRunner().invoke(app, line)
    assert first.exit_code == 1
    assert "lost · seed 1: " in first.stderr
    assert "/nowhere" in first.stderr
    found = list(csv.DictReader((runs / "comparison" / "tables" / "runs.csv").open()))
    assert [row["row"] for row in found] == ["dynammo", "no adapters"]
    assert 50 < mean(float(row["average_incremental_accuracy"]) for row in found) <= 100  # 50 is chance in task 1
    assert (runs / "comparison" / "index.html").is_file()

    before = {path: path.stat().st_mtime_ns for path in runs.rglob("events.jsonl")}
    assert len(before) == 2
    file = write_comparison(tmp_path, seeds=[1], rows=rows)
    assert CliRunner().invoke(app, line).exit_code == 0
    assert {path: path.stat().st_mtime_ns for path in runs.rglob("events.jsonl")} == before


def test_shards_are_disjoint_and_together_all_runs(tmp_path: Path) -> None:
    cells = load_comparison(write_comparison(tmp_path, seeds=[1, 2, 3, 4])).cells
    parts = [part_of(cells, f"{number}/3") for number in (1, 2, 3)]
    assert [len(part) for part in parts] == [3, 3, 2]
    assert {cell.label for part in parts for cell in part} == {cell.label for cell in cells}
    # Two comparisons may share runs: each is still in one shard alone.
    assert part_of([*cells, *cells], "2/3") == parts[1]
    assert part_of(cells[:1], "2/3") == []


@pytest.mark.parametrize("shard", ["0/2", "3/2", "2", "1/0", "-1/2", "a/b", "1/2/3"])
def test_a_shard_that_is_not_one_is_refused(tmp_path: Path, shard: str) -> None:
    result = CliRunner().invoke(app, ["compare", str(write_comparison(tmp_path)), "--shard", shard])
    assert result.exit_code == 1
    assert f"--shard {shard!r}" in result.stderr
    assert "K/N with K from 1 to N" in " ".join(result.stderr.split())


def command(words: list[str], said: Path) -> None:
    """Run a command in a process of its own; what it says is left in a file."""
    make_pages_small(pytest.MonkeyPatch())
    result = CliRunner().invoke(app, words)
    said.write_text(result.output)
    sys.exit(result.exit_code)


def test_what_has_finished_in_the_folder_above_is_taken_over(tmp_path: Path) -> None:
    file, runs = write_comparison(tmp_path), tmp_path / "runs" / "compare"
    whole, stale, begun, absent = cells = load_comparison(file).cells
    pretend(whole, runs.parent, average=80)
    (whole.directory(runs.parent) / "checkpoints").mkdir()
    pretend(stale, runs.parent, average=80, code="of other code")
    pretend(begun, runs.parent, average=80)
    begun.directory(runs).mkdir(parents=True)
    result = CliRunner().invoke(app, ["compare", str(file), "--runs", str(runs), "--no-run"])
    assert "Taken" not in result.output
    assert take_over(cells, runs) == [whole.label]
    assert list(missing_cells(cells, runs).values()) == [stale, begun, absent]
    assert sorted(path.name for path in runs.iterdir() if path.name != "comparison") == sorted(
        [whole.run_name, begun.run_name]
    )
    assert [path.name for path in whole.directory(runs).iterdir()] == ["summary.json"]
    assert take_over(cells, runs) == []


@pytest.mark.slow
def test_two_processes_at_once_share_a_folder_and_the_last_writes_the_page(
    tmp_path: Path, preloaded: ForkServerContext
) -> None:
    rows = {"narrow": {"memory.exemplars": 12}, "wide": {"memory.exemplars": 24}}
    file, runs = write_comparison(tmp_path, seeds=[1], rows=rows), tmp_path / "runs"
    line = ["compare", str(file), "--runs", str(runs), "--workers", "1"]
    said = [tmp_path / "first.txt", tmp_path / "second.txt"]
    parts = [
        preloaded.Process(target=command, args=([*line, "--shard", f"{number}/2"], text))
        for number, text in enumerate(said, start=1)
    ]
    for part in parts:
        part.start()
    for part in parts:
        part.join()
    assert [part.exitcode for part in parts] == [0, 0]
    assert (runs / "comparison" / "index.html").is_file()
    assert any("Page: " in text.read_text() for text in said)
    cells = load_comparison(file).cells
    assert not missing_cells(cells, runs)
    for cell in cells:
        assert len(events(cell.directory(runs), "run_started")) == 1


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"rows": {}}, "rows"),
        ({"settings": {}}, "settings"),
        ({"seedz": [1]}, r"seedz: unknown key \(did you mean 'seeds'"),
        ({"rows": {0.5: {}}}, 'write it in quotation marks: "0.5"'),
        ({"metric": "recall"}, "mean_class_recall"),
        ({"rows": {"x": {"method.alfa": 1}}}, r"comparison\.yaml, x: .*small\.yaml, method\.alfa"),
        ({"base": "nowhere.yaml"}, r"comparison\.yaml, dynammo: .*nowhere\.yaml"),
        ({"rows": {"one": {}, "other": {"method.adapters": True}}}, "'other · seed 1' is the same .* 'one · seed 1'"),
    ],
)
def test_a_wrong_comparison_is_refused_by_name(tmp_path: Path, changes: dict[str, object], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        load_comparison(write_comparison(tmp_path, **changes))


def test_an_experiment_is_no_comparison() -> None:
    with pytest.raises(ConfigError, match=r"is no comparison.*`run` takes an experiment"):
        load_comparison(Path(__file__).parents[3] / "configs" / "digits.yaml")


def test_of_a_whole_folder_the_comparisons_are_compared_and_experiments_named(tmp_path: Path) -> None:
    words = ["compare", str(write_comparison(tmp_path)), "--no-run", "--runs", str(tmp_path / "runs")]
    beside = CliRunner().invoke(app, [*words, str(tmp_path / "small.yaml")])
    assert beside.exit_code == 0, beside.output
    assert f"compares nothing: {tmp_path / 'small.yaml'}" in beside.output
    assert (tmp_path / "runs" / "comparison" / "index.html").is_file()
    (tmp_path / "wrong.yaml").write_text("nonsense: 1\n")
    wrong = CliRunner().invoke(app, [*words, str(tmp_path / "wrong.yaml")])
    assert wrong.exit_code == 1
    assert "wrong.yaml" in wrong.output


def test_a_row_may_stand_under_two_settings_and_is_run_once(tmp_path: Path) -> None:
    settings = {"three": {"federation.sites": 3}, "two": {"federation.sites": 2}}
    rows = {"dynammo": {}, "bound": {"federation.sites": 1}}
    comparison = load_comparison(write_comparison(tmp_path, seeds=[1], settings=settings, rows=rows))
    runs = [cell.run_name for cell in comparison.cells]
    assert runs[1] == runs[3]
    assert len(missing_cells(comparison.cells, tmp_path / "runs")) == len(set(runs)) == 3
    pretend(comparison.cells[1], tmp_path / "runs", average=80.0)
    found = [group.setting for group in comparison.groups(tmp_path / "runs") if group.results]
    assert found == ["three", "two"]


def test_files_that_would_share_a_page_are_refused(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    files = [str(write_comparison(folder)) for folder in (tmp_path, tmp_path / "other")]
    result = CliRunner().invoke(app, ["compare", *files, "--no-run", "--runs", str(tmp_path / "runs")])
    assert result.exit_code == 1
    assert "same file name" in result.stderr


@pytest.mark.parametrize("name", ["best", "best_memory"])
@pytest.mark.parametrize("comparison", ["compare/best.yaml", "medical/compare_all_skin8.yaml"])
def test_the_rows_of_the_best_configurations_are_these(name: str, comparison: str) -> None:
    configs = Path(__file__).parents[3] / "configs"
    shipped = load_config(configs / f"{name}.yaml")
    row = next(cell.config for cell in load_comparison(configs / comparison).cells if cell.row == name)
    assert (row.method, row.backbone) == (shipped.method, shipped.backbone)
    assert row.data.image_size == shipped.data.image_size
    if comparison.startswith("medical"):
        assert (row.data, row.tasks) == (shipped.data, shipped.tasks)
    if name == "best_memory":
        assert row.memory == shipped.memory
