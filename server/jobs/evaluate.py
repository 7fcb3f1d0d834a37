"""Test the model of a run at every site, at any time, without training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from flwr.serverapp import Grid

from dynammo_core.configuration.config import Config
from dynammo_core.experiment import Experiment
from dynammo_core.scoring import metrics
from dynammo_core.scoring.reliability import MEASURES
from dynammo_core.support.files import write_atomically
from server.run.exchange import Exchange
from server.run.own_heads import COMMON, own_heads_summary
from server.run.results import number, pooled
from server.run.task_loop import TaskLoop
from server.run_directory.directory import RunDirectory


class _OnlyRead(RunDirectory):
    """The directory of a run that may be going on meanwhile, so its event log is never written."""

    def log(self, event: str, **fields: object) -> None:
        """Leave the log as it is."""


def evaluate_run(grid: Grid, config: Config[Any], run: Path, output: Path) -> None:
    """Ask the sites for the counts of the run's latest model and write the metrics as JSON; the run stays as it is.

    Raises:
        CheckpointError: the run has no checkpoint, or one of another experiment.
        RunError: no task is finished, or no site answers.
    """
    experiment = Experiment(config)
    loop = TaskLoop(experiment, Exchange(grid, config.federation), _OnlyRead(run))
    loop.load()
    task, answers = loop.evaluate()
    seen, names = experiment.stream.seen(task), experiment.class_names
    label = experiment.site_label
    if answers.total:
        by_site, every = {}, [answers.total.counts["confusion"]]
    else:
        by_site = {
            site: report.numbers["confusion"] for site, report in answers.reports.items() if not report.abstained
        }
        every = list(by_site.values())  # type: ignore[arg-type]
    sites = list(by_site)
    confusion = np.array(every, dtype=np.int64).reshape(1, -1, experiment.classes, experiment.classes)
    images, accuracies = confusion.sum(axis=(0, 2, 3)), metrics.site_accuracies(confusion, [seen])
    site_recalls = metrics.site_mean_class_recalls(confusion, [seen])
    recalls, tables = metrics.class_recalls(confusion, [seen]), pooled(answers)
    everyone = range(config.federation.sites)
    own = {name: answers.table(name, everyone, experiment.classes) for name in experiment.method.evaluation().tables}
    tested = {COMMON: answers.table("confusion", everyone, experiment.classes), **own}
    result = {
        "after_task": task + 1,
        "accuracy": number(metrics.last_accuracy(confusion, [seen])),
        "mean_class_recall": number(metrics.mean_class_recall(confusion, [seen])),
        "leading_metric": metrics.leading_metric(confusion, [seen]),
        "worst_site_accuracy": number(metrics.worst_site_accuracy(confusion, [seen])) if sites else None,
        "worst_site_mean_class_recall": number(np.fmin.reduce(site_recalls)) if sites else None,
        **{name: number(measure(tables)) for name, measure in MEASURES.items()},
        "sites": {
            label(site): {
                "images": int(images[at]),
                "accuracy": number(accuracies[at]),
                "mean_class_recall": number(site_recalls[at]),
            }
            for at, site in enumerate(sites)
        },
        **own_heads_summary(experiment, task, tested),
        "recall": {names[index]: number(recalls[index]) for index in seen},
        "failures": {label(failure.site): f"{failure.error}, code {failure.code}" for failure in answers.failures},
    }
    write_atomically(output, json.dumps(result, indent=2).encode() + b"\n")
