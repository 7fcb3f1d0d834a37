"""Read and check the files of a run directory, finished or not."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from dynammo_core.scoring.metrics import Counts
from dynammo_core.scoring.reliability import COLUMNS, Reliability, tables_from_rows
from dynammo_core.support.csv_text import read_csv_table
from dynammo_core.support.errors import RunError
from dynammo_core.support.yaml_files import parse_yaml

Json = dict[str, Any]


@dataclass(frozen=True)
class RunFiles:
    """The contents of a run directory; a file that is not there yet is empty.

    Attributes:
        config: the resolved settings, `config.yaml`.
        summary: `summary.json`; empty while the run is unfinished.
        model: `model.json`.
        events: the lines of `events.jsonl`, oldest first.
        lost_lines: number of unreadable lines: a crash may truncate one.
        confusions: the rows of `confusion_matrix.csv`.
        reliability: the tables after each task, counted from 0; those of a run that did not count them are absent.
    """

    config: Json
    summary: Json
    model: Json
    events: list[Json]
    lost_lines: int
    confusions: list[dict[str, str]]
    reliability: dict[int, Reliability]

    @classmethod
    def read(cls, directory: Path) -> RunFiles:
        """Read the files that are there.

        Raises:
            RunError: there are neither settings nor events in the directory, or a file cannot be read.
        """
        if not (directory / "config.yaml").is_file() and not (directory / "events.jsonl").is_file():
            raise RunError(
                f"{directory} is not a run directory",
                accepted="a run directory, with config.yaml and events.jsonl",
                remedy="Look for it under runs/",
            )
        lines = _text(directory / "events.jsonl").splitlines()
        events = [event for event in map(_event, lines) if event]
        return cls(
            config=_mapping(directory / "config.yaml", parse_yaml),
            summary=_mapping(directory / "summary.json", json.loads),
            model=_mapping(directory / "model.json", json.loads),
            events=events,
            lost_lines=len(lines) - len(events),
            confusions=_rows(directory / "confusion_matrix.csv"),
            reliability=_reliability(directory),
        )

    def after_task(self, directory: Path, task: int) -> RunFiles:
        """Return the files with the summary as it was after an earlier task, counted from 1, if the run kept it."""
        kept = directory / f"models/task-{task:02d}" / "summary.json"
        if task == len(self.summary.get("accuracy_after_tasks", ())) or not kept.is_file():
            return self
        return replace(self, summary=_mapping(kept, json.loads))

    def of_kind(self, kind: str) -> list[Json]:
        """Return the events of one kind, oldest first."""
        return [event for event in self.events if event["event"] == kind]

    @cached_property
    def started(self) -> Json:
        """Return the latest start, as a resumed run has several."""
        return next(reversed(self.of_kind("run_started")), {})

    @cached_property
    def steps(self) -> list[Json]:
        """Return the finished steps in order; for a step done again after a crash, the last time counts."""
        return [step for _, step in sorted({event["step"]: event for event in self.of_kind("step_finished")}.items())]

    @cached_property
    def evaluations(self) -> list[Json]:
        """Return the evaluation after each task, in order; the last one if a crash made it happen twice."""
        return [
            event for _, event in sorted({event["task"]: event for event in self.of_kind("task_evaluated")}.items())
        ]

    @cached_property
    def task_names(self) -> list[list[str]]:
        """Return the class names of each task, in the order of learning, including tasks to come."""
        return self.started.get("tasks") or self.model.get("tasks") or []

    @cached_property
    def tasks(self) -> list[list[int]]:
        """Return the classes of each task as places in the order of learning."""
        ends = np.cumsum([len(names) for names in self.task_names]).tolist()
        return [list(range(end - len(names), end)) for end, names in zip(ends, self.task_names, strict=True)]

    @cached_property
    def confusion(self) -> Counts | None:
        """Return counts [T, 1, C, C] in the order of learning, pooled over sites; None before the first."""
        return None if self.confusion_by_site is None else self.confusion_by_site[1].sum(axis=1, keepdims=True)

    @cached_property
    def confusion_by_site(self) -> tuple[list[str], Counts] | None:
        """Return the sites, and counts [T, K, C, C] in the order of learning; None before the first.

        A site is its index as a text; sites whose answers were summed before they arrived are one site, `all`.
        """
        place = {name: index for index, name in enumerate(name for names in self.task_names for name in names)}
        if not self.confusions or not place:
            return None
        sites = sorted({row["site"] for row in self.confusions}, key=lambda site: (len(site), site))
        tasks = max(int(row["after_task"]) for row in self.confusions)
        counts = np.zeros((tasks, len(sites), len(place), len(place)), np.int64)
        row_of = {site: index for index, site in enumerate(sites)}
        for row in self.confusions:
            counts[int(row["after_task"]) - 1, row_of[row["site"]], place[row["true"]], place[row["predicted"]]] += int(
                row["count"]
            )
        return sites, counts

    @cached_property
    def training_images(self) -> dict[str, NDArray[np.int64]]:
        """Return counts [C] in the order of learning by site, named as in `confusion_by_site`; empty if not logged.

        A site tells in each stage how many images of each class its answer speaks for; the most that it told counts.
        """
        told: dict[str, NDArray[np.int64]] = {}
        classes = sum(map(len, self.task_names))
        for step in self.steps:
            for entry in [{"site": "all", **step["total"]}] if "total" in step else step["sites"]:
                if counts := entry.get("class_counts"):
                    grown = np.pad(np.array(counts, np.int64), (0, classes - len(counts)))  # classes may be added later
                    told[str(entry["site"])] = np.maximum(told.get(str(entry["site"]), 0), grown)
        return told

    def site_name(self, site: str) -> str:
        """Return what people call a site that the files know by its index, or all sites together."""
        labels = self.started.get("site_names") or []
        if site.isdigit():
            return str(labels[int(site)]) if int(site) < len(labels) else f"site {site}"
        return "all sites" if site == "all" else site


def _rows(path: Path) -> list[dict[str, str]]:
    return read_csv_table(_text(path))


def _reliability(directory: Path) -> dict[int, Reliability]:
    try:
        return tables_from_rows({name: _rows(directory / f"{name}.csv") for name in COLUMNS})
    except (KeyError, IndexError, TypeError, ValueError) as error:
        names = " and ".join(f"{name}.csv" for name in COLUMNS)
        raise RunError(
            f"Cannot parse {names} in {directory} ({type(error).__name__}: {error})",
            remedy="Restore the files, or delete them",
        ) from error


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")  # as it is: names of classes may hold line breaks of any kind
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeError) as error:
        raise RunError(
            f"Cannot read {path}: {error}", remedy="Restore it from the machine that made the run"
        ) from error


def _mapping(path: Path, parse: Callable[[str], Any]) -> Json:
    text = _text(path)
    try:
        parsed = parse(text) if text else {}
    except (ValueError, yaml.YAMLError) as error:
        where = " ".join(str(error).split())
        raise RunError(f"Cannot parse {path}: {where}", remedy="Restore the file, or delete it") from error
    if not isinstance(parsed, dict):
        raise RunError(
            f"{path} holds a {type(parsed).__name__}", accepted="a mapping of keys to values", remedy="Restore the file"
        )
    return parsed


def _event(line: str) -> Json | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and "event" in event else None
