"""Comparisons as data: rows of overrides and seeds over one base experiment; only the runs that are missing are run."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import yaml
from pydantic import Field, ValidationError
from rich.box import SIMPLE
from rich.table import Table

from dynammo_core.config import Config, Scalar, load_config, resolve
from dynammo_core.errors import ConfigError
from dynammo_core.experiment import code_hash
from dynammo_core.files import write_atomically
from dynammo_core.settings import Section
from simulations.engines import run_local

METRICS = ("average_incremental_accuracy", "last_accuracy", "forgetting")
"""Keys of the summary that a comparison shows, in the order of its columns; the CSV has more."""


class Comparison(Section):
    """A file of `configs/compare/`: what to compare, under which seeds."""

    base: str = Field(description="the experiment that all rows share; relative to this file")
    seeds: tuple[int, ...] = Field(default=(1, 2, 3), min_length=1)
    overrides: dict[str, Scalar] = Field(default={}, description="overrides of every row")
    rows: dict[str, dict[str, Scalar]] = Field(min_length=1, description="overrides of each row, by its name")


@dataclass(frozen=True)
class Cell:
    """One run of a comparison."""

    row: str
    seed: int
    config: Config[Any]

    def directory(self, runs: Path) -> Path:
        """Where the run leaves its results."""
        return runs / f"{self.config.name}-{self.config.content_hash[:8]}"

    def summary(self, runs: Path) -> dict[str, Any] | None:
        """The summary of the finished run by this very code, or none."""
        file = self.directory(runs) / "summary.json"
        if not file.exists():
            return None
        summary: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        same = summary["status"] == "completed" and summary["config_hash"] == self.config.content_hash
        return summary if same and summary["code_hash"] == code_hash() else None


def is_comparison(path: Path) -> bool:
    """Whether a YAML file is a comparison and not an experiment."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return False
    return isinstance(data, dict) and "rows" in data


def load_comparison(path: Path) -> list[Cell]:
    """Every run that a comparison file asks for, seed by seed, each configuration validated.

    Raises:
        ConfigError: the file or one of its rows is wrong.
    """
    try:
        comparison = Comparison.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"the comparison {path} cannot be read: {error}") from error
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(str(part) for part in problem["loc"])
        raise ConfigError(f"{path}, {place}: {problem['msg']}", accepted=", ".join(Comparison.model_fields)) from error
    base = path.parent / comparison.base
    return [
        Cell(row, seed, load_config(base, {**comparison.overrides, **overrides, "seed": seed}))
        for seed in comparison.seeds
        for row, overrides in comparison.rows.items()
    ]


def run_missing(cells: Sequence[Cell], runs: Path, workers: int | None, on_finished: Callable[[int], None]) -> None:
    """Run the cells that have no finished run yet, in parallel over cores; stopping loses only the runs in hand.

    Args:
        cells: all runs of a comparison.
        runs: folder of their run directories.
        workers: runs at a time; by default as many as the cores carry.
        on_finished: told how many cells are finished, whenever that changes.
    """
    missing = [cell for cell in cells if cell.summary(runs) is None]
    done = len(cells) - len(missing)
    on_finished(done)
    if not missing:
        return
    threads = max(cell.config.compute.threads for cell in missing)
    with ProcessPoolExecutor(workers or max(1, (os.cpu_count() or 1) // threads), get_context("spawn")) as pool:
        running: set[Future[None]] = {pool.submit(_run_cell, cell.config.canonical_json(), runs) for cell in missing}
        try:
            while running:
                finished, running = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    future.result()
                    done += 1
                    on_finished(done)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _run_cell(config_json: str, runs: Path) -> None:
    config = resolve(json.loads(config_json), "the comparison", {})
    run_local(config, runs, None, lambda event: None)


def table(cells: Sequence[Cell], runs: Path) -> Table:
    """Mean and standard deviation over the finished seeds of each row, and its paired difference Δ from the first."""
    headings = ("row", "seeds", "average", "last", "forgetting", "Δ average", "Δ last")
    result = Table(*headings, box=SIMPLE, padding=(0, 1, 0, 0))
    rows = list(_rows(cells, runs))
    first_name, first = rows[0]
    for name, by_seed in rows:
        values = [_mean_and_deviation([own[metric] for own in by_seed.values()]) for metric in METRICS]
        pairs = [
            _mean_and_deviation([own[metric] - first[seed][metric] for seed, own in by_seed.items() if seed in first])
            for metric in METRICS[:2]
        ]
        result.add_row(name, str(len(by_seed)), *values, *(pairs if name != first_name else ("", "")))
    return result


def write_table(cells: Sequence[Cell], runs: Path, file: Path) -> None:
    """The figures of every finished run as CSV."""
    columns = ("row", "seed", *METRICS, "worst_site_accuracy", "seconds", "config_hash", "code_hash")
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for name, by_seed in _rows(cells, runs):
        writer.writerows({"row": name, **summary} for summary in by_seed.values())
    write_atomically(file, buffer.getvalue().encode())


def _rows(cells: Sequence[Cell], runs: Path) -> Iterator[tuple[str, dict[int, dict[str, Any]]]]:
    """The summaries of each row's finished runs, by seed."""
    for name in dict.fromkeys(cell.row for cell in cells):
        summaries = {cell.seed: cell.summary(runs) for cell in cells if cell.row == name}
        yield name, {seed: summary for seed, summary in summaries.items() if summary is not None}


def _mean_and_deviation(values: Sequence[float]) -> str:
    """`84.6 ± 0.4`, with the sample standard deviation; a dash where there is nothing yet."""
    if not values:
        return "-"
    spread = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
    return f"{mean(values):.1f}{spread}"
