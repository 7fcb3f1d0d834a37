"""Comparisons as data: rows, settings and seeds over one base experiment; only the runs that are missing are run."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, ValidationInfo, field_validator

from dynammo_core.configuration.config import Config, Scalar, load_config
from dynammo_core.configuration.settings import MethodSettings, Section
from dynammo_core.experiment import code_hash
from dynammo_core.support.errors import ConfigError

Json = dict[str, Any]
OnEvent = Callable[[str, Mapping[str, Any]], None]
"""Told the name of a run and an event of it."""


@dataclass(frozen=True)
class Metric:
    """A measure by which rows are compared, and the keys under which a summary holds it."""

    words: str
    average: str
    last: str
    after_tasks: str


METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        "accuracy": Metric("accuracy", "average_incremental_accuracy", "last_accuracy", "accuracy_after_tasks"),
        "mean_class_recall": Metric(
            "mean class recall", "average_mean_class_recall", "mean_class_recall", "mean_class_recall_after_tasks"
        ),
    }
)


class ComparisonFile(Section):
    """A file of `configs/compare/`: what to compare, under which settings and seeds."""

    base: str = Field(description="the experiment that all rows share; relative to this file")
    metric: Literal["accuracy", "mean_class_recall"] = Field(default="accuracy", description="of average and last")
    seeds: tuple[int, ...] = Field(default=(1, 2, 3), min_length=1)
    overrides: dict[str, Scalar] = Field(default={}, description="overrides of every row")
    settings: dict[str, dict[str, Scalar]] = Field(
        default={"": {}}, min_length=1, description="overrides of each setting, by its name; every row meets each"
    )
    grid: dict[str, dict[str, dict[str, Scalar]]] = Field(
        default={}, description="instead of settings: two names, such as alpha and sites, with overrides by value"
    )
    rows: dict[str, dict[str, Scalar]] = Field(min_length=1, description="overrides of each row, by its name")

    @field_validator("grid")
    @classmethod
    def _two_axes(
        cls, grid: dict[str, dict[str, dict[str, Scalar]]], info: ValidationInfo
    ) -> dict[str, dict[str, dict[str, Scalar]]]:
        if grid and (len(grid) != 2 or not all(grid.values()) or any(info.data.get("settings", {}))):
            raise ValueError(f"{list(grid)} must be two names, each with at least one value, in the place of settings")
        return grid

    @property
    def sweep(self) -> Sweep | None:
        """The grid; None where settings stand by themselves."""
        if not self.grid:
            return None
        along, across = self.grid
        pairs = product(self.grid[along], self.grid[across])
        return Sweep(along, across, {f"{along} {one}, {across} {other}": (one, other) for one, other in pairs})

    @property
    def conditions(self) -> dict[str, dict[str, Scalar]]:
        """The overrides of each setting, be it named or a point of the grid."""
        if (sweep := self.sweep) is None:
            return self.settings
        one, other = self.grid[sweep.along], self.grid[sweep.across]
        return {setting: {**one[first], **other[second]} for setting, (first, second) in sweep.points.items()}


@dataclass(frozen=True)
class Sweep:
    """Settings that form a grid.

    Attributes:
        along: what a figure has from left to right.
        across: what it has a line for.
        points: the two values of each setting, by its name.
    """

    along: str
    across: str
    points: Mapping[str, tuple[str, str]]


@dataclass(frozen=True)
class Cell:
    """One run of a comparison; the setting is empty where the file names none."""

    setting: str
    row: str
    seed: int
    config: Config[Any]

    @property
    def label(self) -> str:
        """What people call this run."""
        return " · ".join(part for part in (self.setting, self.row, f"seed {self.seed}") if part)

    def directory(self, runs: Path) -> Path:
        """Where the run leaves its results."""
        return runs / self.config.run_name

    def summary(self, runs: Path) -> Json | None:
        """The summary of the finished run by this very code, or none."""
        try:
            summary: Json = json.loads((self.directory(runs) / "summary.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None
        wanted = {"status": "completed", "config_hash": self.config.content_hash, "code_hash": code_hash()}
        return summary if wanted.items() <= summary.items() else None


@dataclass(frozen=True)
class Comparison:
    """A comparison file, read: its cells setting by setting, seed by seed, row by row."""

    file: Path
    metric: Metric
    cells: tuple[Cell, ...]
    sweep: Sweep | None = None

    def groups(self, runs: Path) -> list[Group]:
        """The finished runs of every row under every setting, in the file's order."""
        cells: dict[tuple[str, str], list[Cell]] = {}
        for cell in self.cells:
            cells.setdefault((cell.setting, cell.row), []).append(cell)
        return [
            Group(
                setting,
                row,
                own[0].config.method,
                tuple(
                    Result(cell.seed, cell.directory(runs), summary)
                    for cell in own
                    if (summary := cell.summary(runs)) is not None
                ),
            )
            for (setting, row), own in cells.items()
        ]


@dataclass(frozen=True)
class Result:
    """A finished run: what its summary says, and where its other files lie."""

    seed: int
    directory: Path
    summary: Json


@dataclass(frozen=True)
class Group:
    """The finished runs of one row under one setting, one a seed."""

    setting: str
    row: str
    method: MethodSettings
    results: tuple[Result, ...]


@dataclass(frozen=True)
class Outcome:
    """How a run ended, and at which node; `error` is the text of what stopped it, empty where it completed."""

    run_name: str
    node: str
    error: str


Pool = Callable[[Sequence[Config[Any]], Path, OnEvent], Generator[Outcome, None, None]]
"""Runs all the experiments, leaves their run directories in the folder, and yields each outcome as it is known.

Closing the generator, or an exception that passes through it, stops every run in hand.
"""


def is_comparison(path: Path) -> bool:
    """Whether a YAML file is a comparison and not an experiment."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return False
    return isinstance(data, dict) and "rows" in data


def load_comparison(path: Path) -> Comparison:
    """Every run that a comparison file asks for, each configuration validated.

    A row's overrides win over its setting's, and those over the common ones.

    Raises:
        ConfigError: the file or one of its rows is wrong, or two rows of a setting are the same experiment.
    """
    try:
        read = ComparisonFile.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeError, yaml.YAMLError) as error:
        raise ConfigError(f"the comparison {path} cannot be read: {' '.join(str(error).split())}") from error
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(str(part) for part in problem["loc"])
        accepted = ", ".join(ComparisonFile.model_fields)
        raise ConfigError(f"{path}, {place}: {problem['msg']}", accepted=accepted) from error
    cells: dict[str, Cell] = {}
    for setting, shared in read.conditions.items():
        for seed in read.seeds:
            for row, own in read.rows.items():
                overrides = {**read.overrides, **shared, **own, "seed": seed}
                cell = Cell(setting, row, seed, load_config(path.parent / read.base, overrides))
                if (same := cells.setdefault(cell.config.content_hash, cell)) is not cell:
                    what = f"{path}: {cell.label!r} is the same experiment as {same.label!r}"
                    raise ConfigError(what, remedy="Leave one of them out, or give it other overrides")
    return Comparison(path, METRICS[read.metric], tuple(cells.values()), read.sweep)


def missing_cells(cells: Sequence[Cell], runs: Path) -> dict[str, Cell]:
    """The cells that have no finished run yet, by the name of the run; comparisons may share a run."""
    return {cell.config.run_name: cell for cell in cells if cell.summary(runs) is None}


def run_missing(
    missing: Mapping[str, Cell], runs: Path, pool: Pool, on_event: OnEvent, on_outcome: Callable[[Outcome], None]
) -> list[Outcome]:
    """Run cells; stopping at any time loses only what the runs in hand did since their last checkpoint.

    Args:
        missing: the cells, by the name of their run.
        runs: folder of the run directories.
        pool: where they run.
        on_event: told every event of every run.
        on_outcome: told how each run ended, when it ends.

    Returns:
        The outcomes of those that failed; a failure does not keep the others from running.
    """
    failed = []
    if missing:
        with closing(pool([cell.config for cell in missing.values()], runs, on_event)) as outcomes:
            for outcome in outcomes:
                on_outcome(outcome)
                if outcome.error:
                    failed.append(outcome)
    return failed
