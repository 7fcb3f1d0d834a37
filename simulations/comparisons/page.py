"""One self-contained page about many runs, with its tables as CSV and its figures as SVG and PNG beside it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from urllib.parse import quote

import jinja2
import numpy as np
from jinja2 import UndefinedError

from dynammo_core.code_identity import project_hash
from dynammo_core.methods import METHODS
from dynammo_core.scoring.cost import macs_table
from dynammo_core.support.errors import RunError
from dynammo_core.support.files import write_atomically
from server.report.page import page_environment
from server.report.plots import Drawing, Values, confusion_drawing
from server.run_directory.run_files import RunFiles
from simulations.comparisons.compare import Group, Json, Metric, Result, Sweep
from simulations.comparisons.costs import cost_figures, costs, write_costs
from simulations.comparisons.own_heads import own_heads, write_own_heads
from simulations.comparisons.plots import accuracy_curves, sweep_figures
from simulations.comparisons.table import (
    FEWEST_PAIRS,
    Spread,
    by_setting,
    bytes_by_task,
    lines,
    paired_tests,
    write_tables,
)
from simulations.comparisons.template import TEMPLATE

COST_TASKS = (1, 5, 10)


def write_page(
    folder: Path,
    *,
    title: str,
    command: str,
    groups: Sequence[Group],
    metric: Metric,
    missing: Sequence[str],
    sweep: Sweep | None = None,
) -> Path:
    """Write `index.html`, `tables/*.csv` and `plots/*.svg|png`; the same runs give the same bytes.

    Args:
        folder: where to.
        title: heads the page.
        command: what makes the page again; stands under every figure.
        groups: the finished runs, setting by setting.
        metric: the measure.
        missing: what people call the runs that are not finished.
        sweep: the grid that the settings form: a figure for each row, in the place of those of each setting.

    Returns:
        The path of the page.

    Raises:
        RunError: the files of a run cannot be read, or do not fit together.
        CheckpointError: a file cannot be written.
    """
    try:
        swept = sweep_figures(groups, metric, sweep) if sweep else {}
        against_cost = {} if sweep else _against_cost(groups, metric)
        figures = swept if sweep else {**dict(_curves(groups, metric)), **dict(_confusions(groups))}
        figures |= {name: drawn for own in against_cost.values() for name, drawn in own.items()}
        cost = _cost(groups)
        contents = _contents(groups, metric, cost, folder) | {
            "title": title,
            "command": command,
            "metric": metric,
            "missing": missing,
            "sweep": sweep,
            "swept": list(swept),
            "swept_rows": _by_row(groups),
            "against_cost": {setting: list(own) for setting, own in against_cost.items()},
            "code": project_hash(),
            "svg": {name: drawn.svg for name, drawn in figures.items()},
        }
        page = _environment().from_string(TEMPLATE).render(contents)
        write_tables(groups, metric, cost, folder / "tables")
        write_costs(costs(groups, metric), metric, folder / "tables" / "accuracy_and_cost.csv")
        if own := own_heads(groups):
            write_own_heads(own, folder / "tables" / "own_heads.csv")
    except (UndefinedError, KeyError, IndexError, TypeError, ValueError) as error:
        what = f"the files of the runs do not match this version ({type(error).__name__}: {error})"
        raise RunError(what, remedy="Make the page with the version of this project that made the runs") from error
    for name, drawn in figures.items():
        write_atomically(folder / "plots" / f"{name}.svg", drawn.svg.encode())
        write_atomically(folder / "plots" / f"{name}.png", drawn.png())
    path = folder / "index.html"
    write_atomically(path, page.encode())
    return path


def _environment() -> jinja2.Environment:
    environment = page_environment()
    environment.filters.update(spread=_spread, gigamacs=lambda macs: f"{macs / 1e9:.3g}")
    return environment


def _spread(spread: Spread | None) -> str:
    return "" if spread is None else str(spread).replace("-", "–" if spread.mean is None else "−")


def _contents(groups: Sequence[Group], metric: Metric, cost: Sequence[Json], folder: Path) -> Json:
    """Return everything that the template shows, setting by setting."""
    names = _names(groups)
    by_line = {(line.setting, line.row): line for line in lines(groups, metric)}
    settings = []
    for setting, members in by_setting(groups):
        finished = [group for group in members if group.results]
        settings.append(
            {
                "name": setting,
                "lines": [(by_line[setting, group.row], _reports(group, folder)) for group in members],
                "made": _provenance(finished),
                "tests": paired_tests(members, metric),
                "curve": names[setting, ""],
                "confusions": [
                    {
                        "name": names[setting, group.row],
                        "row": group.row,
                        "seed": group.results[0].seed,
                        "made": _provenance([Group(setting, group.row, group.method, group.results[:1])]),
                    }
                    for group in finished
                ],
                "costs": costs(finished, metric),
                "own_heads": own_heads(finished),
                "traffic": [_traffic(group) for group in finished],
            }
        )
    results = [result for group in groups for result in group.results]
    return {
        "settings": settings,
        "finished": len(results),
        "cost": _by_backbone_and_row(cost),
        "cost_tasks": COST_TASKS,
        "fewest_pairs": FEWEST_PAIRS,
        "codes": sorted({result.summary["code_hash"][:12] for result in results}),
    }


def _provenance(groups: Sequence[Group]) -> list[tuple[str, list[tuple[int, str]]]]:
    """Return each row's seeds with the hashes of their configurations."""
    return [
        (group.row, [(result.seed, result.summary["config_hash"][:8]) for result in group.results]) for group in groups
    ]


def _reports(group: Group, folder: Path) -> list[tuple[int, str]]:
    """Return a row's seeds with the address of the page of each run, empty for a run without one."""
    pages = ((result.seed, result.directory / "report.html") for result in group.results)
    return [
        (seed, quote(Path(os.path.relpath(page, folder)).as_posix()) if page.is_file() else "") for seed, page in pages
    ]


def _by_row(groups: Sequence[Group]) -> list[Json]:
    """Return each row that has finished anywhere, with the provenance of its runs under all settings."""
    rows = dict.fromkeys(group.row for group in groups if group.results)
    return [
        {
            "name": row,
            "made": [
                (group.setting, made)
                for group in groups
                if group.row == row and group.results
                for _, made in _provenance([group])
            ],
        }
        for row in rows
    ]


def _curves(groups: Sequence[Group], metric: Metric) -> Iterator[tuple[str, Drawing]]:
    for setting, members in by_setting(groups):
        curves = {
            group.row: np.array([_floats(result.summary[metric.after_tasks]) for result in group.results])
            for group in members
            if group.results
        }
        if curves:
            final = "; ".join(f"{row} {values[:, -1].mean():.1f}" for row, values in curves.items())
            label = f"Curves of the {metric.words} after each task, in percent, mean over seeds. At the end: {final}."
            name = _names(groups)[setting, ""]
            yield name, accuracy_curves(name, curves, metric.words, label)


def _confusions(groups: Sequence[Group]) -> Iterator[tuple[str, Drawing]]:
    """Draw the matrix of the first seed: seeds with shuffled classes have other tasks and cannot be pooled."""
    names = _names(groups)
    for group in groups:
        if group.results:
            name = names[group.setting, group.row]
            yield name, _confusion(name, group.row, group.results[0])


def _confusion(name: str, row: str, result: Result) -> Drawing:
    run = RunFiles.read(result.directory)
    if run.confusion is None:
        raise RunError(f"{result.directory} holds no confusion matrix", remedy="Restore confusion_matrix.csv")
    names = [name for task in run.task_names for name in task]
    label = f"Confusion matrix of {row}, seed {result.seed}, {len(names)} classes, after the last task."
    return confusion_drawing(name, run.confusion[-1, 0], names, [len(task) for task in run.task_names], label)


def _against_cost(groups: Sequence[Group], metric: Metric) -> dict[str, dict[str, Drawing]]:
    """Draw each setting's last values of the measure against what they cost, by the names of the figures."""
    names = _names(groups)
    return {
        setting: dict(cost_figures(costs(members, metric), metric, names[setting, ""].partition("-")[2]))
        for setting, members in by_setting(groups)
    }


def _cost(groups: Sequence[Group]) -> list[Json]:
    """Return a row for each network that was run, row of the comparison and number of tasks, as its runs are set."""
    found: dict[tuple[str, str], list[Json]] = {}
    for group in groups:
        for result in group.results[:1]:
            run = RunFiles.read(result.directory)
            backbone, classes = result.summary["backbone"], len(run.task_names[0])
            side = run.config["backbone"].get("image_size") or run.config["data"]["image_size"]
            network = f"{backbone}, {side} × {side} pixels, {classes} classes a task"
            counted = _cost_of(backbone, side, classes, group.method.name, group.method.model_dump_json())
            found.setdefault(
                (network, group.row), [{**cell, "backbone": network, "row": group.row} for cell in counted]
            )
    return [cell for cells in found.values() for cell in cells]


@cache
def _cost_of(backbone: str, image_size: int, classes: int, method: str, settings: str) -> list[Json]:
    """Count the cost once for all pages of a process: it takes seconds if a method keeps a network per task."""
    validated = METHODS[method].Params.model_validate(json.loads(settings))
    return macs_table(
        backbones=[backbone],
        methods=[validated],
        tasks=COST_TASKS,
        image_size=image_size,
        classes_per_task=classes,
    )


def _by_backbone_and_row(cost: Sequence[Json]) -> dict[str, dict[str, list[Json]]]:
    """Return the cells of each table line, by the number of tasks."""
    tables: dict[str, dict[str, list[Json]]] = {}
    for cell in cost:
        tables.setdefault(cell["backbone"], {}).setdefault(cell["row"], []).append(cell)
    return tables


def _traffic(group: Group) -> Json:
    """Return the bytes of a row, means over its seeds: in all, and by task."""
    runs = [bytes_by_task(RunFiles.read(result.directory)) for result in group.results]
    summary = group.results[0].summary
    return {
        "row": group.row,
        "sites": summary["sites"],
        "tasks": summary["tasks"],
        "up": _mean(result.summary["bytes_up"] for result in group.results),
        "down": _mean(result.summary["bytes_down"] for result in group.results),
        "by_task": [
            (_mean(run.get(task, (0, 0))[0] for run in runs), _mean(run.get(task, (0, 0))[1] for run in runs))
            for task in range(summary["tasks"])
        ],
    }


def _mean(values: Iterator[int]) -> int:
    return round(float(np.mean(list(values))))


def _floats(values: Sequence[float | None]) -> Values:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def _names(groups: Sequence[Group]) -> dict[tuple[str, str], str]:
    """Return the names of figures, for files and ids: of each setting's curves, and of each row's matrix under it.

    They are numbered, since other texts may come to the same letters: `confusion-2-five-sites-no-adapters`.
    """
    curves = {(setting, ""): ("curves", setting) for setting, _ in by_setting(groups)}
    matrices = {(group.setting, group.row): ("confusion", f"{group.setting} {group.row}") for group in groups}
    return {
        key: f"{kind}-{number}-{re.sub(r'[^a-z0-9_]+', '-', text.lower()).strip('-')}".rstrip("-")
        for own in (curves, matrices)
        for number, (key, (kind, text)) in enumerate(own.items(), start=1)
    }
