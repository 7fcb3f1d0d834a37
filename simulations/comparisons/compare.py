"""Comparisons as data: rows, settings and seeds over one base experiment; only the runs that are missing are run."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Self

import yaml
from pydantic import Field, field_validator, model_validator

from dynammo_core.code_identity import code_hash
from dynammo_core.configuration.config import Config, Scalar, load_config
from dynammo_core.configuration.settings import MethodSettings
from dynammo_core.support.errors import ConfigError, unknown_name
from dynammo_core.support.yaml_files import Section, parse_yaml, read_yaml, validate

Json = dict[str, Any]
OnEvent = Callable[[str, Mapping[str, Any]], None]
"""Receives the name of a run and an event of it."""


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

    base: str = Field(description="experiment that all rows share, as a path relative to this file")
    metric: Literal["accuracy", "mean_class_recall"] | None = Field(
        default=None,
        description="metric of the columns average and last; null: the mean class recall where classes are uneven",
    )
    seeds: tuple[int, ...] = Field(
        default=(1, 2, 3), min_length=1, description="random seeds; each row is run with every one"
    )
    overrides: dict[str, Scalar] = Field(default={}, description="overrides for every row")
    settings: dict[str, dict[str, Scalar]] = Field(
        default={"": {}},
        min_length=1,
        description="overrides by the name of a setting; every row is run in each setting",
    )
    grid: dict[str, dict[str, dict[str, Scalar]]] = Field(
        default={},
        description="one axis, whose values are rows; or two, such as alpha and sites, instead of settings; an axis "
        "has overrides by value, or is a key with a list of values",
    )
    rows: dict[str, dict[str, Scalar]] = Field(
        default={}, description="overrides by the name of a row; a grid with one axis needs none"
    )
    chosen: dict[str, dict[str, dict[str, Scalar]]] = Field(
        default={},
        description="overrides of a row under one setting, by setting and row, as `dynammo-sim tune` prints them; they "
        "win over the row's",
    )

    @field_validator("grid", mode="before")
    @classmethod
    def _values_of_a_key(cls, grid: Any) -> Any:
        if not isinstance(grid, dict):
            return grid
        return {
            axis: {str(value): {axis: value} for value in values} if isinstance(values, list) else values
            for axis, values in grid.items()
        }

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(self.grid) > 2 or not all(self.grid.values()):
            raise ValueError(f"grid: {list(self.grid)} must have one axis or two, each with at least one value")
        if len(self.grid) == 2 and any(self.settings):
            raise ValueError("grid: two axes replace settings; leave out one of them")
        if not self.every_row:
            raise ValueError("there must be rows, or a grid with one axis")
        for setting, rows in self.chosen.items():
            if setting not in self.conditions:
                raise ValueError(f"chosen: {unknown_name('setting', setting, self.conditions)}")
            for row in rows:
                if row not in self.every_row:
                    raise ValueError(f"chosen: {unknown_name('row', row, self.every_row)}")
        return self

    @property
    def every_row(self) -> dict[str, dict[str, Scalar]]:
        """Return the overrides of each row, with each value of a grid that has one axis."""
        if len(self.grid) != 1:
            return self.rows
        pairs = product((self.rows or {"": {}}).items(), *(axis.items() for axis in self.grid.values()))
        return {", ".join(filter(None, (row, value))): {**own, **added} for (row, own), (value, added) in pairs}

    @property
    def sweep(self) -> Sweep | None:
        """Return the grid; None if settings stand by themselves."""
        if len(self.grid) < 2:
            return None
        along, across = self.grid
        pairs = product(self.grid[along], self.grid[across])
        return Sweep(along, across, {f"{along} {one}, {across} {other}": (one, other) for one, other in pairs})

    @property
    def conditions(self) -> dict[str, dict[str, Scalar]]:
        """Return the overrides of each setting, be it named or a point of the grid."""
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
class Wire:
    """What the simulated wire does to the sites' answers, which no configuration says.

    Attributes:
        folder: subfolder of the run directories, as runs over different wires have the same configuration.
        attack: name of the lie that the first `federation.liars` sites tell; empty if all answer truly.
        learner: the one site that trains; None for all.
    """

    folder: str = ""
    attack: str = ""
    learner: int | None = None

    @property
    def honest(self) -> bool:
        """Whether all sites train and answer truly."""
        return not self.attack and self.learner is None


@dataclass(frozen=True)
class Cell:
    """One run of a comparison; the setting is empty if the comparison names none."""

    setting: str
    row: str
    seed: int
    config: Config[Any]
    wire: Wire = Wire()

    @property
    def run_name(self) -> str:
        """Return the path of the run directory in the folder of all runs."""
        return str(Path(self.wire.folder) / self.config.run_name)

    @property
    def label(self) -> str:
        """Return what people call this run."""
        return " · ".join(part for part in (self.setting, self.row, f"seed {self.seed}") if part)

    def directory(self, runs: Path) -> Path:
        """Return the directory in which the run leaves its results."""
        return runs / self.run_name

    def summary(self, runs: Path) -> Json | None:
        """Return the summary of the finished run by this very code; None if there is none."""
        try:
            summary: Json = json.loads((self.directory(runs) / "summary.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None
        expected = {"status": "completed", "config_hash": self.config.content_hash, "code_hash": code_hash(self.config)}
        return summary if expected.items() <= summary.items() else None


@dataclass(frozen=True)
class Comparison:
    """A comparison file, read: its cells setting by setting, seed by seed, row by row."""

    file: Path
    metric: str | None
    cells: tuple[Cell, ...]
    sweep: Sweep | None = None

    def groups(self, runs: Path) -> list[Group]:
        """Return the finished runs of every row under every setting, in the file's order."""
        return grouped(self.cells, runs)


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


def is_comparison(path: Path) -> bool:
    """Whether a YAML file is a comparison and not an experiment."""
    try:
        data = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return False
    return isinstance(data, dict) and not {"rows", "grid"}.isdisjoint(data)


def load_comparison(path: Path) -> Comparison:
    """Return every run that a comparison file asks for, each configuration validated.

    A row's overrides win over its setting's, and those over the common ones. So a row with one site can stand, as a
    bound, under each setting with more: it is run once.

    Raises:
        ConfigError: the file or one of its rows is wrong, or two rows of a setting are the same experiment.
    """
    data, tree = read_yaml(path)
    if isinstance(data, dict) and not {"base", "rows"} & set(data):
        keys = ", ".join(ComparisonFile.model_fields)
        raise ConfigError(f"{path} is no comparison", accepted=keys, remedy="`run` takes an experiment")
    read = validate(ComparisonFile, data, str(path), tree)
    cells: list[Cell] = []
    for setting, shared in read.conditions.items():
        alike: dict[str, Cell] = {}
        best = read.chosen.get(setting, {})
        for seed in read.seeds:
            for row, own in read.every_row.items():
                overrides = {**read.overrides, **shared, **own, **best.get(row, {}), "seed": seed}
                cell = Cell(setting, row, seed, _configured(path, read.base, overrides, setting, row))
                if (same := alike.setdefault(cell.config.content_hash, cell)) is not cell:
                    what = f"{path}: {cell.label!r} is the same experiment as {same.label!r}"
                    raise ConfigError(what, remedy="Leave out one of them, or give it different overrides")
        cells += alike.values()
    return Comparison(path, read.metric, tuple(cells), read.sweep)


def _configured(path: Path, base: str, overrides: dict[str, Scalar], setting: str, row: str) -> Config[Any]:
    try:
        return load_config(path.parent / base, overrides)
    except ConfigError as error:
        raise ConfigError(f"{path}, {' · '.join(filter(None, (setting, row)))}: {error}") from error


def grouped(cells: Sequence[Cell], runs: Path) -> list[Group]:
    """Return the finished runs of every row under every setting, in the order of the cells."""
    found: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        found.setdefault((cell.setting, cell.row), []).append(cell)
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
        for (setting, row), own in found.items()
    ]


def missing_cells(cells: Sequence[Cell], runs: Path) -> dict[str, Cell]:
    """Return the cells that have no finished run yet, by the name of the run; comparisons may share a run."""
    return {cell.run_name: cell for cell in cells if cell.summary(runs) is None}
