"""The numbers of a comparison: mean and deviation over seeds, differences paired by seed, as tables and as CSV."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from statistics import mean, stdev

from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from dynammo_core.scoring.reliability import MEASURES
from dynammo_core.support.csv_text import csv_table
from dynammo_core.support.files import write_atomically
from server.run_directory.run_files import RunFiles
from simulations.comparisons.compare import Group, Json, Metric, Result

TERMINAL_HEADINGS = {
    **{"average": "average", "last": "last", "forgetting": "forgetting"},
    **{"average_difference": "Δ average", "last_difference": "Δ last"},
}
FEWEST_PAIRS = 6
"""With fewer seeds the exact test cannot give a p-value below 0.05, whatever the differences: five give 2 / 2^5."""
EXTREMES = {"fewest": min, "most": max}
SUMMARY_COLUMNS = (
    *("method", "average_incremental_accuracy", "last_accuracy", "average_mean_class_recall", "mean_class_recall"),
    *(
        "forgetting",
        "worst_site_accuracy",
        "worst_site_mean_class_recall",
        "macs_per_image",
        "deployed_parameters",
        "bytes_up",
        "bytes_down",
    ),
    *(*MEASURES, "seconds", "config_hash", "code_hash"),
)


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation, which a single value does not have; no values have neither."""

    mean: float | None
    deviation: float | None

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Spread:
        """Compute both over the values that are known."""
        known = [value for value in values if value is not None]
        return cls(mean(known) if known else None, stdev(known) if len(known) > 1 else None)

    def __str__(self) -> str:
        """Format as `84.6 ± 0.4`; a dash if there is nothing yet."""
        if self.mean is None:
            return "-"
        return f"{self.mean:.1f}" + ("" if self.deviation is None else f" ± {self.deviation:.1f}")


@dataclass(frozen=True)
class PairedTest:
    """A row's difference from the setting's first row, after the last task, tested over the seeds that both have.

    Attributes:
        row: the row.
        seeds: number n of pairs.
        p: two-sided p-value of the exact test that flips the signs of the differences (Fisher, 1935).
        least: the smallest p-value that n pairs can give, 2 / 2^n.
    """

    row: str
    seeds: int
    p: float
    least: float


@dataclass(frozen=True)
class Line:
    """A line of the table: a row under a setting. Differences are from the setting's first row, paired by seed.

    The measures of reliability are None where the runs have none: they were made before there were any.

    Attributes:
        test_images: how many stand behind the figures after the last task, by seed; fewer where a site failed to test.
    """

    setting: str
    row: str
    seeds: tuple[int, ...]
    test_images: tuple[int, ...]
    average: Spread
    last: Spread
    forgetting: Spread
    average_difference: Spread | None
    last_difference: Spread | None
    calibration_error: Spread | None
    open_set_auroc: Spread | None
    open_set_fpr95: Spread | None

    @property
    def spreads(self) -> dict[str, Spread | None]:
        """Return all figures by name, in the order of the columns."""
        facts = {"setting", "row", "seeds", "test_images"}
        return {name: value for name, value in vars(self).items() if name not in facts}

    @property
    def tested(self) -> str:
        """Return the numbers of test images in words."""
        return _range(self.test_images)


def by_setting(groups: Iterable[Group]) -> list[tuple[str, list[Group]]]:
    """Return the groups of each setting, in order."""
    return [(setting, list(own)) for setting, own in groupby(groups, key=lambda group: group.setting)]


def lines(groups: Sequence[Group], metric: Metric) -> list[Line]:
    """Return the table's lines, in the order of the groups, which stand setting by setting."""
    return [_line(group, own[0], metric) for _, own in by_setting(groups) for group in own]


def paired_tests(members: Sequence[Group], metric: Metric) -> list[PairedTest]:
    """Test each row of a setting against the first one, where they have `FEWEST_PAIRS` seeds in common."""
    from scipy.stats import permutation_test

    tests = []
    for group in members[1:]:
        differences = _differences(group, members[0], metric.last)
        if len(differences) >= FEWEST_PAIRS:
            found = permutation_test((differences,), mean, permutation_type="samples", vectorized=False, rng=0)
            tests.append(PairedTest(group.row, len(differences), float(found.pvalue), 2.0 ** (1 - len(differences))))
    return tests


def _differences(group: Group, first: Group, key: str) -> list[float]:
    theirs = {result.seed: result.summary for result in first.results}
    pairs = [(own.summary.get(key), theirs[own.seed].get(key)) for own in group.results if own.seed in theirs]
    return [own - other for own, other in pairs if own is not None and other is not None]


def _line(group: Group, first: Group, metric: Metric) -> Line:
    def spread(key: str) -> Spread:
        return Spread.of(result.summary.get(key) for result in group.results)

    def difference(key: str) -> Spread | None:
        return None if group is first else Spread.of(_differences(group, first, key))

    return Line(
        setting=group.setting,
        row=group.row,
        seeds=tuple(result.seed for result in group.results),
        test_images=tuple(
            images[-1] for result in group.results if (images := result.summary.get("test_images_after_tasks"))
        ),
        average=spread(metric.average),
        last=spread(metric.last),
        forgetting=spread("forgetting"),
        average_difference=difference(metric.average),
        last_difference=difference(metric.last),
        **{name: _if_measured(group, name) for name in MEASURES},
    )


def reliability(summary: Json) -> dict[str, float | None]:
    """Return the calibration error after the last task, and of each other measure the mean over the tasks that have it.

    After the last task no class is to come, so there is none of these. None where a run has measured nothing.
    """
    after_tasks = {name: summary.get(f"{name}_after_tasks") or [None] for name in MEASURES}
    return {
        name: values[-1] if name == "calibration_error" else Spread.of(values).mean
        for name, values in after_tasks.items()
    }


def _range(numbers: Sequence[int]) -> str:
    """Return `980 to 1000`, or the one number if all are the same; nothing without any."""
    ends = dict.fromkeys((min(numbers), max(numbers))) if numbers else ()
    return " to ".join(map(str, ends))


def _if_measured(group: Group, name: str) -> Spread | None:
    spread = Spread.of(reliability(result.summary)[name] for result in group.results)
    return None if group.results and spread.mean is None else spread


def table(groups: Sequence[Group], metric: Metric, title: str = "") -> Table:
    """Return the lines for a terminal of 80 columns."""
    headings = ("row", "seeds", *TERMINAL_HEADINGS.values())
    every = lines(groups, metric)
    caption = (f"{title}: " if title else "") + metric.words
    if tested := [number for line in every for number in line.test_images]:
        caption += f" on {_range(tested)} test images"
    caption += ", percent (mean ± deviation over seeds)"
    result = Table(*headings, box=SIMPLE, padding=0, show_edge=False, title=escape(caption), title_justify="left")
    for setting, own in groupby(every, key=lambda line: line.setting):
        if setting:
            result.add_section()
            result.add_row(f"[bold]{escape(setting)}[/]")
        for line in own:
            figures = ("" if (spread := line.spreads[name]) is None else str(spread) for name in TERMINAL_HEADINGS)
            result.add_row(escape(line.row), str(len(line.seeds)), *figures)
    return result


def bytes_by_task(run: RunFiles) -> dict[int, tuple[int, int]]:
    """Return the bytes up and down in each task, counted from 0, of all sites and rounds."""
    totals: dict[int, list[int]] = defaultdict(lambda: [0, 0])
    for step in run.steps:
        totals[step["task"]][0] += step["bytes_up"]
        totals[step["task"]][1] += step["bytes_down"]
    return {task: (up, down) for task, (up, down) in totals.items()}


def write_tables(groups: Sequence[Group], metric: Metric, cost: Sequence[Json], folder: Path) -> None:
    """Write `table`, `runs`, `curves`, `confusion`, `bytes` and `cost`, all `.csv`, each whole or not at all."""
    named = ("setting", "row", "seed")
    results = [
        ({"setting": group.setting, "row": group.row, "seed": result.seed}, result)
        for group in groups
        for result in group.results
    ]
    _write(folder / "table.csv", _table_rows(groups, metric))
    every_run = [
        {**names, **result.summary, **reliability(result.summary), "directory": result.directory}
        for names, result in results
    ]
    _write(folder / "runs.csv", every_run, (*named, *SUMMARY_COLUMNS, "directory"))
    _write(
        folder / "curves.csv",
        [
            {**names, "after_task": task, "value": value, "metric": metric.words}
            for names, result in results
            for task, value in enumerate(result.summary[metric.after_tasks], start=1)
        ],
        (*named, "after_task", "value", "metric"),
    )
    _write(
        folder / "confusion.csv",
        [{**names, **row} for names, result in results for row in _last_confusion(result)],
        (*named, "true", "predicted", "count"),
    )
    traffic = [{**names, **row} for names, result in results for row in _traffic(result)]
    _write(folder / "bytes.csv", traffic, (*named, "task", "site", "bytes_up", "bytes_down"))
    _write(folder / "cost.csv", cost, ("backbone", "row", "method", "tasks", "macs", "parameters"))


def _table_rows(groups: Sequence[Group], metric: Metric) -> list[Json]:
    rows = []
    for line in lines(groups, metric):
        row: Json = {"setting": line.setting, "row": line.row, "metric": metric.words, "seeds": len(line.seeds)}
        row |= {f"test_images_{name}": most(line.test_images, default=None) for name, most in EXTREMES.items()}
        for name, spread in line.spreads.items():
            row[f"{name}_mean"] = _rounded(spread.mean) if spread else None
            row[f"{name}_deviation"] = _rounded(spread.deviation) if spread else None
        rows.append(row)
    return rows


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _last_confusion(result: Result) -> list[dict[str, str | int]]:
    """Return the rows of the confusion matrix after the last task, pooled over sites."""
    run = RunFiles.read(result.directory)
    names = [name for task in run.task_names for name in task]
    if run.confusion is None:
        return []
    return [
        {"true": true, "predicted": predicted, "count": int(run.confusion[-1, 0, i, j])}
        for i, true in enumerate(names)
        for j, predicted in enumerate(names)
        if run.confusion[-1, 0, i, j]
    ]


def _traffic(result: Result) -> list[dict[str, int]]:
    """Return the bytes of each site in each task, counted from 1; sites count from 0."""
    totals: dict[tuple[int, int], list[int]] = defaultdict(lambda: [0, 0])
    for step in RunFiles.read(result.directory).steps:
        for site in step["sites"]:
            own = totals[step["task"], site["site"]]
            own[0] += site["bytes_up"]
            own[1] += site["bytes_down"]
    return [
        {"task": task + 1, "site": site, "bytes_up": up, "bytes_down": down}
        for (task, site), (up, down) in sorted(totals.items())
    ]


def _write(file: Path, rows: Sequence[Mapping[str, object]], columns: Sequence[str] = ()) -> None:
    write_atomically(file, csv_table(columns or list(rows[0]), rows).encode())
