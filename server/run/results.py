"""Write a run's results from its counts: metrics, tables and the deployable model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor

from dynammo_core.code_identity import code_hash
from dynammo_core.deployed.model_files import FACTS, WEIGHTS, answering_tensors, deployed_tensors, tensors_sha256
from dynammo_core.experiment import Experiment
from dynammo_core.models import BACKBONES
from dynammo_core.models.description import licence_of, weights_sha256
from dynammo_core.models.incremental_model import IncrementalModel
from dynammo_core.models.names import matching, travelling_names
from dynammo_core.plan import Action
from dynammo_core.privacy.accounting import ACCOUNTANT, MECHANISMS, NEIGHBOURS, compose
from dynammo_core.privacy.plan import client_charges
from dynammo_core.scoring import metrics
from dynammo_core.scoring.cost import Deployed, multiply_accumulates
from dynammo_core.scoring.reliability import COLUMNS, MEASURES, Reliability, known_threshold, table_rows
from dynammo_core.wire.compression import CODECS, carried
from dynammo_core.wire.protocol import names_up
from server.run.answers import Answers
from server.run.own_heads import COMMON, own_heads_summary
from server.run_directory.deployed import SUMMARY, model_folder
from server.run_directory.directory import RunDirectory
from server.run_directory.progress import Progress
from server.run_directory.start import package_versions

TESTED = ("mean_class_recall", "leading_metric", "site_accuracies", "site_mean_class_recalls")
"""Figures of the summary that the log holds after each task, beside the accuracy."""


def write_results(
    directory: RunDirectory, experiment: Experiment, model: IncrementalModel, progress: Progress, *, status: str
) -> dict[str, object]:
    """Write the tables of counts as CSV and `summary.json`, and return the summary."""
    confusion, tasks = confusion_of(experiment, progress), experiment.stream.tasks
    names = experiment.class_names
    directory.write_csv(
        "accuracy_matrix.csv",
        ["site", "after_task", "task", "class", "correct", "total"],
        _by_site(experiment, metrics.accuracy_rows(confusion, tasks, names)),
    )
    directory.write_csv(
        "confusion_matrix.csv",
        ["site", "after_task", "true", "predicted", "count"],
        _by_site(experiment, metrics.confusion_rows(confusion, tasks, names)),
    )
    tables = reliability_after_tasks(progress)
    for table, columns in COLUMNS.items():
        directory.write_csv(f"{table}.csv", ["after_task", "bin", *columns], table_rows(table, tables))
    summary = summarise(experiment, model, progress, status)
    directory.write_json("summary.json", summary)
    return summary


def summarise(experiment: Experiment, model: IncrementalModel, progress: Progress, status: str) -> dict[str, object]:
    """Return the summary of a run: accuracies in percent, bytes of tensors, seconds of finished steps."""
    config, confusion, tasks = experiment.config, confusion_of(experiment, progress), experiment.stream.tasks
    deployed = Deployed(experiment.method, model)
    hidden = config.federation.secure_aggregation
    by_site = np.empty(0) if hidden else metrics.site_accuracies(confusion, tasks)
    recalls = np.empty(0) if hidden else metrics.site_mean_class_recalls(confusion, tasks)
    return {
        "name": config.name,
        "method": config.method.name,
        "dataset": config.data.dataset,
        "backbone": config.backbone_of(len(confusion) - 1).name,
        "seed": config.seed,
        "tasks": len(tasks),
        "sites": config.federation.sites,
        "average_incremental_accuracy": number(metrics.average_incremental_accuracy(confusion, tasks)),
        "last_accuracy": number(metrics.last_accuracy(confusion, tasks)),
        "forgetting": number(metrics.forgetting(confusion, tasks)),
        "backward_transfer": number(metrics.backward_transfer(confusion, tasks)),
        "mean_class_recall": number(metrics.mean_class_recall(confusion, tasks)),
        "average_mean_class_recall": number(metrics.average_mean_class_recall(confusion, tasks)),
        "worst_site_accuracy": number(np.fmin.reduce(by_site, initial=np.nan)),
        "worst_site_mean_class_recall": number(np.fmin.reduce(recalls, initial=np.nan)),
        "leading_metric": metrics.leading_metric(confusion, tasks),
        "class_imbalance": number(metrics.class_imbalance(confusion, tasks)),
        "test_images_after_tasks": confusion.sum(axis=(1, 2, 3)).tolist(),
        "accuracy_after_tasks": [number(value) for value in metrics.accuracy_after_tasks(confusion, tasks)],
        "mean_class_recall_after_tasks": [
            number(value) for value in metrics.mean_class_recall_after_tasks(confusion, tasks)
        ],
        "site_accuracies": [number(value) for value in by_site],
        "site_mean_class_recalls": [number(value) for value in recalls],
        **own_heads_summary(experiment, len(confusion) - 1, {COMMON: progress.confusion[-1], **progress.own_heads}),
        **reliability_summary(progress),
        "macs_per_image": multiply_accumulates(deployed, config.data.image_size),
        "deployed_parameters": deployed.parameter_count(),
        "trainable_parameters": _trainable_parameters(experiment, model, len(progress.confusion) - 1),
        "bytes_up": progress.bytes_up,
        "bytes_down": progress.bytes_down,
        "rounds": progress.next_step,
        "seconds": round(progress.seconds, 3),
        "privacy": privacy_summary(experiment, progress),
        "status": status,
        "config_hash": config.content_hash,
        "code_hash": code_hash(config),
    }


def reliability_after_tasks(progress: Progress) -> dict[int, Reliability]:
    """Return the tables of each finished task that has them."""
    return {int(task): Reliability.of(numbers) for task, numbers in progress.reliability.items()}


def reliability_summary(progress: Progress) -> dict[str, list[float | None]]:
    """Return each measure after each finished task, or None without images to compute it from."""
    after_tasks = reliability_after_tasks(progress)
    tables = [after_tasks.get(task, Reliability.of({})) for task in range(len(progress.confusion))]
    measured = {name: [number(measure(one)) for one in tables] for name, measure in MEASURES.items()}
    measured["open_set_threshold"] = [_fine(known_threshold(one)) for one in tables]
    return {f"{name}_after_tasks": values for name, values in measured.items()}


def pooled(answers: Answers) -> Reliability:
    """Return the tables of a test over all sites that answered it."""
    if answers.total:
        return Reliability.of(answers.total.counts)
    return sum((Reliability.of(report.numbers) for report in answers.reports.values()), Reliability.of({}))


def privacy_summary(experiment: Experiment, progress: Progress) -> dict[str, object] | None:
    """Return the privacy guarantee and how much of it has been spent, or None without differential privacy."""
    config, settings = experiment.config, experiment.config.privacy
    if settings.mechanism == "none":
        return None
    facts: dict[str, object] = {
        "mechanism": MECHANISMS[settings.mechanism],
        "neighbours": NEIGHBOURS[settings.mechanism, settings.unit],
        "accountant": ACCOUNTANT,
        "delta": settings.delta,
        "budget": settings.epsilon,
        "noise_multiplier": experiment.noise_multiplier,
    }
    if settings.mechanism == "client":
        done = client_charges(experiment.steps[: progress.next_step], experiment.noise_multiplier)
        return {**facts, "epsilon": round(compose(done, settings.delta), 4)}
    by_site = [progress.epsilon.get(str(site), 0.0) for site in range(config.federation.sites)]
    return {**facts, "epsilon": number(max(by_site)), "epsilon_by_site": [number(spent) for spent in by_site]}


def write_model(
    directory: RunDirectory,
    experiment: Experiment,
    model: IncrementalModel,
    task: int,
    tested: Reliability,
    summary: dict[str, object],
    *,
    deploy: bool = True,
) -> None:
    """Write the model after a task, ready to predict, with its description and its summary, to `models/task-NN`.

    Args:
        directory: directory of the run.
        experiment: the experiment.
        model: the model.
        task: the task that it has learnt last.
        tested: what it answered to the sites' test images.
        summary: the run's summary after that task.
        deploy: also make it the deployed one, `model.safetensors` and `model.json`.
    """
    tensors = deployed_tensors(experiment.method, model)
    config, class_names = experiment.config, experiment.class_names
    network = config.backbone_of(task)
    facts = {
        "class_names": list(class_names),
        "tasks": [[class_names[label] for label in classes] for classes in experiment.stream.tasks[: task + 1]],
        "backbone": network.name,
        "backbone_licence": licence_of(network),
        "insertion_points": list(BACKBONES[network.name].insertion_points),
        "method": config.method.model_dump(mode="json"),
        "image_size": config.data.image_size,
        "network_size": network.image_size,
        "normalisation": config.normalisation,
        "fit": config.data.fit,
        "window": config.data.window,
        "frame": config.data.frame,
        "heads": {name: list(model.head(name).rows) for name in _deployed_heads(experiment, model)},
        "open_set_threshold": _fine(known_threshold(tested)),
        "own_statistics": _own_statistics(experiment, model, tensors),
        "own_heads_sha256": _own_heads_sha256(experiment, model),
        "versions": package_versions(),
        "lineage": {
            "config_hash": config.content_hash,
            "code_hash": code_hash(config),
            "backbone_sha256": weights_sha256(network),
            "after_task": task + 1,
            "tensors_sha256": tensors_sha256(tensors),
        },
    }
    for folder in (model_folder(task), *([""] if deploy else [])):
        directory.write(f"{folder}{WEIGHTS}", save(tensors))
        directory.write_json(f"{folder}{FACTS}", facts)
    directory.write_json(f"{model_folder(task)}{SUMMARY}", summary)


def _own_statistics(
    experiment: Experiment, model: IncrementalModel, tensors: dict[str, Tensor]
) -> dict[str, str] | None:
    """Return the kind of the sites' own statistics, and the hash of the tensors they tested, as rounded on the way."""
    config = experiment.config
    if config.scanners.own_statistics == "none":
        return None
    sent = {name: tensors[name] for name in travelling_names(model) if name in tensors}
    arrived = {**tensors, **carried(CODECS[config.federation.compression], sent)}
    return {"kind": config.scanners.own_statistics, "tested_sha256": tensors_sha256(arrived)}


def _own_heads_sha256(experiment: Experiment, model: IncrementalModel) -> str | None:
    """Return the hash of the common head as it arrived where sites solved their own; None if they solve none."""
    if not experiment.method.evaluation().tables:
        return None
    sent = answering_tensors(experiment.method, model)
    return tensors_sha256(carried(CODECS[experiment.config.federation.compression], sent))


def _deployed_heads(experiment: Experiment, model: IncrementalModel) -> list[str]:
    """Return the names of the heads that prediction reads."""
    return [name for name in model.heads if matching([f"heads.{name}.weight"], experiment.method.deployed)]


def _trainable_parameters(experiment: Experiment, model: IncrementalModel, task: int) -> int:
    """Return how many parameters any FIT stage of the task trains."""
    stages = [stage for stage in experiment.method.all_stages(task) if stage.action is Action.FIT]
    names = {name for stage in stages for name in names_up(model, stage)}
    return sum(parameter.numel() for name, parameter in model.named_parameters() if name in names)


def confusion_of(experiment: Experiment, progress: Progress) -> NDArray[np.int64]:
    """Return the counts of all tests, [T, K, C, C]: task, site, true class, answer; K is 1 if only sums are known."""
    classes, sites = experiment.classes, experiment.config.federation.tested_apart
    return np.array(progress.confusion, dtype=np.int64).reshape(len(progress.confusion), sites, classes, classes)


def _by_site(experiment: Experiment, rows: Iterable[dict[str, int | str]]) -> Iterator[dict[str, int | str]]:
    """Return the rows of a table, for all sites together if the server learns only the sum."""
    hidden = experiment.config.federation.secure_aggregation
    return (row | {"site": "all"} if hidden else row for row in rows)


def _fine(score: float) -> float | None:
    """Return a score with more digits, as scores close to 1 differ in their last digits."""
    return None if math.isnan(score) else round(score, 9)


def number(value: float) -> float | None:
    """Return a number rounded for people and for JSON, which has no nan."""
    return None if math.isnan(value) else round(float(value), 4)
