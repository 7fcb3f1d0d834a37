"""Hold the results of a run as tables: lists of plain records, which `pandas.DataFrame` and `csv.DictWriter` take."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from dynammo_core.scoring import metrics
from server.run_directory.run_files import RunFiles

Table = list[dict[str, Any]]


@dataclass(frozen=True)
class RunResults(os.PathLike[str]):
    """Read what a run left in its directory, table by table; tasks count from 1, accuracies are in percent.

    It stands for the directory where a path is opened, as in `Path(results)`.

    Attributes:
        directory: the run directory.
    """

    directory: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "directory", Path(self.directory))  # a text from a notebook

    def __fspath__(self) -> str:
        return str(self.directory)

    @cached_property
    def summary(self) -> dict[str, Any]:
        """Return every figure of `summary.json`, by its key."""
        return self._files.summary

    @cached_property
    def after_tasks(self) -> Table:
        """Return a record after each task: accuracy and mean class recall over all classes so far, and test images."""
        keys = ("accuracy", "mean_class_recall", "test_images")
        columns = zip(*(self.summary[f"{key}_after_tasks"] for key in keys), strict=True)
        return [{"after_task": task, **dict(zip(keys, row, strict=True))} for task, row in enumerate(columns, start=1)]

    @cached_property
    def accuracies(self) -> Table:
        """Return a record for each task tested, site and class that the site has test images of."""
        if self._files.confusion_by_site is None:
            return []
        sites, counts = self._files.confusion_by_site
        names = [name for task in self._files.task_names for name in task]
        return [
            {**row, "site": self._files.site_name(sites[int(row["site"])]), "accuracy": _percent(row)}
            for row in metrics.accuracy_rows(counts, self._files.tasks, names)
        ]

    @cached_property
    def confusions(self) -> Table:
        """Return a record with the `count` of test images for each task tested, site, true and predicted class."""
        return [
            row | {"site": self._files.site_name(row["site"])} | {key: int(row[key]) for key in ("after_task", "count")}
            for row in self._files.confusions
        ]

    @cached_property
    def images(self) -> Table:
        """Return a record with the training and test images of each site and class, as the sites told them."""
        tested = {
            (row["site"], row["class"]): row["total"]
            for row in self.accuracies
            if row["after_task"] == len(self.after_tasks)
        }
        sites = {self._files.site_name(site): counts for site, counts in self._files.training_images.items()}
        names = [name for task in self._files.task_names for name in task]
        return [
            {"site": site, "class": name, "training": int(count), "test": tested.get((site, name), 0)}
            for site, counts in sites.items()
            for name, count in zip(names, counts, strict=True)
        ]

    @cached_property
    def rounds(self) -> Table:
        """Return a record for each answer of a site in a round: samples, loss if it trained, seconds and bytes."""
        return [
            {
                **{"task": step["task"] + 1, "stage": step["stage"], "round": step["round"] + 1},
                "site": self._files.site_name(str(answer["site"])),
                **{key: answer[key] for key in ("samples", "bytes_up", "bytes_down")},
                **{key: answer["metrics"].get(key) for key in ("loss", "seconds")},
            }
            for step in self._files.steps
            for answer in step["sites"]
        ]

    @cached_property
    def _files(self) -> RunFiles:
        return RunFiles.read(self.directory)


def _percent(row: dict[str, int | str]) -> float:
    return round(100 * int(row["correct"]) / int(row["total"]), 4)
