"""Every accuracy that this project reports, each defined once and computed from one table of counts.

`confusion[t, k, i, j]` counts the test images at site k whose true class is i and that were predicted as j after task t
was learnt, over all classes of tasks 0..t. Everything is in percent; without images a share is nan, and means skip it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from dynammo_core.scoring.leading import ACCURACY, RECALL

Counts: TypeAlias = NDArray[np.int64]
Percent: TypeAlias = NDArray[np.float64]
Tasks: TypeAlias = Sequence[Sequence[int]]

UNEVEN = 2
"""Ratio of test images between two classes above which the mean class recall is read before the accuracy."""


def accuracy_after_tasks(confusion: Counts, tasks: Tasks) -> Percent:
    """Compute the accuracy over all classes seen so far, after each task, pooled over sites.

    a[t] = 100 * correct images / images, over the test images of tasks 0..t at all sites (Rebuffi et al., iCaRL, 2017).

    Args:
        confusion: int64 [T, K, C, C] counts; T is the number of finished tasks.
        tasks: class indices of each task; tasks that are still to come may follow the T finished ones.

    Returns:
        float64 [T].

    Raises:
        ValueError: the counts are not a [T, K, C, C] table of non-negative numbers, or do not fit the tasks. The
            functions below take the same arguments and raise the same.
    """
    _check(confusion, tasks)
    correct, total = _per_class(confusion)
    return _percent(correct.sum(axis=(1, 2)), total.sum(axis=(1, 2)))


def accuracy_matrix(confusion: Counts, tasks: Tasks) -> Percent:
    """Compute the accuracy on each task's own classes after each task, pooled over sites, without naming the task.

    A[t, j] = 100 * correct images / images, over the test images of task j's classes after task t; nan for j > t
    (R of Lopez-Paz & Ranzato, Gradient Episodic Memory, 2017, without the tasks that are still to come).

    Returns:
        float64 [T, T].
    """
    _check(confusion, tasks)
    correct, total = (counts.sum(axis=1) for counts in _per_class(confusion))
    columns = [list(task) for task in tasks[: len(confusion)]]
    right = np.stack([correct[:, classes].sum(axis=1) for classes in columns], axis=1)
    return _percent(right, np.stack([total[:, classes].sum(axis=1) for classes in columns], axis=1))


def average_incremental_accuracy(confusion: Counts, tasks: Tasks) -> float:
    """Compute the mean over t of a[t], the accuracy over all classes seen so far (Rebuffi et al., iCaRL, 2017)."""
    return _mean(accuracy_after_tasks(confusion, tasks))


def last_accuracy(confusion: Counts, tasks: Tasks) -> float:
    """Return a[T-1], the accuracy over all classes after the last finished task (Rebuffi et al., iCaRL, 2017)."""
    return float(accuracy_after_tasks(confusion, tasks)[-1])


def forgetting(confusion: Counts, tasks: Tasks) -> float:
    """Compute how far tasks have fallen from their best, in percentage points; 0.0 after one task.

    Mean over j < T-1 of max_{l in j..T-2} A[l, j] - A[T-1, j] (Chaudhry et al., Riemannian Walk, 2018). It is negative
    if later tasks helped.
    """
    matrix = accuracy_matrix(confusion, tasks)
    if len(matrix) == 1:
        return 0.0
    best = np.fmax.reduce(matrix[:-1, :-1], axis=0)  # fmax passes over the nan above the diagonal
    return _mean(best - matrix[-1, :-1])


def backward_transfer(confusion: Counts, tasks: Tasks) -> float:
    """Compute what learning later tasks changed in earlier ones, in percentage points; 0.0 after one task.

    Mean over j < T-1 of A[T-1, j] - A[j, j] (Lopez-Paz & Ranzato, Gradient Episodic Memory, 2017); negative is loss.
    """
    matrix = accuracy_matrix(confusion, tasks)
    if len(matrix) == 1:
        return 0.0
    return _mean(matrix[-1, :-1] - np.diag(matrix)[:-1])


def class_recalls(confusion: Counts, tasks: Tasks) -> Percent:
    """Compute each class's recall after the last finished task, pooled over sites; nan for one without test images.

    Returns:
        float64 [C].
    """
    _check(confusion, tasks)
    correct, total = _per_class(confusion[-1:])
    return _percent(correct.sum(axis=(0, 1)), total.sum(axis=(0, 1)))


def mean_class_recall_after_tasks(confusion: Counts, tasks: Tasks) -> Percent:
    """Compute the mean recall over the classes seen so far, after each task, pooled over sites.

    m[t] = mean over classes i of tasks 0..t of 100 * correct images of i / images of i: every class weighs the same
    however rare it is (balanced accuracy; Brodersen et al., 2010; the measure of DynaMMo's SKIN8).

    Returns:
        float64 [T].
    """
    _check(confusion, tasks)
    correct, total = (counts.sum(axis=1) for counts in _per_class(confusion))
    return np.array([_mean(recalls) for recalls in _percent(correct, total)])


def mean_class_recall(confusion: Counts, tasks: Tasks) -> float:
    """Return m[T-1], the mean recall over all classes after the last finished task."""
    return float(mean_class_recall_after_tasks(confusion, tasks)[-1])


def average_mean_class_recall(confusion: Counts, tasks: Tasks) -> float:
    """Compute the mean over t of m[t], the counterpart of the mean over t of a[t] (the average of DynaMMo's SKIN8)."""
    return _mean(mean_class_recall_after_tasks(confusion, tasks))


def site_accuracies(confusion: Counts, tasks: Tasks) -> Percent:
    """Compute the accuracy of the shared model on each site's own test images, after the last finished task.

    s[k] = 100 * correct images / images, over the test images at site k; nan for a site without test images.

    Returns:
        float64 [K].
    """
    _check(confusion, tasks)
    correct, total = _per_class(confusion[-1:])
    return _percent(correct.sum(axis=(0, 2)), total.sum(axis=(0, 2)))


def worst_site_accuracy(confusion: Counts, tasks: Tasks) -> float:
    """Return the lowest of the sites' accuracies after the last finished task (worst client: Mohri et al., 2019)."""
    return float(np.fmin.reduce(site_accuracies(confusion, tasks)))


def site_mean_class_recalls(confusion: Counts, tasks: Tasks) -> Percent:
    """Compute the mean class recall of the shared model at each site, after the last finished task.

    The mean is over the classes that the site has test images of; nan for a site without test images.

    Returns:
        float64 [K].
    """
    _check(confusion, tasks)
    correct, total = (counts[0] for counts in _per_class(confusion[-1:]))
    return np.array([_mean(recalls) for recalls in _percent(correct, total)])


def site_recall_errors(confusion: Counts, tasks: Tasks) -> Percent:
    """Estimate the standard error of each site's mean class recall, after the last finished task.

    Each recall r of n images has the variance of a binomial share, taken as (r + 1/n) (1 - r + 1/n) / n lest a class of
    few images count as certain; those of K classes add up to K^2 times that of their mean.

    Returns:
        float64 [K], in percentage points; nan for a site without test images.
    """
    _check(confusion, tasks)
    correct, total = (counts[0] for counts in _per_class(confusion[-1:]))
    shares = _percent(correct, total) / 100
    images = np.where(total > 0, total, 1)
    variances = (shares + 1 / images) * (1 - shares + 1 / images) / images
    classes = np.maximum((total > 0).sum(axis=1), 1)
    errors: Percent = 100 * np.sqrt(np.array([_mean(row) for row in variances]) / classes)
    return errors


def worst_site_mean_class_recall(confusion: Counts, tasks: Tasks) -> float:
    """Return the lowest of the sites' mean class recalls after the last finished task."""
    return float(np.fmin.reduce(site_mean_class_recalls(confusion, tasks)))


def class_imbalance(confusion: Counts, tasks: Tasks) -> float:
    """Compute how many times the test images of the rarest class the most frequent class has, pooled over sites.

    Classes without test images are left out; nan without any test image.
    """
    _check(confusion, tasks)
    images = confusion[-1].sum(axis=(0, 2))
    present = images[images > 0]
    return float(present.max() / present.min()) if present.size else float("nan")


def leading_metric(confusion: Counts, tasks: Tasks) -> str:
    """Return the metric to read first: `mean_class_recall` if classes are uneven, else `last_accuracy`.

    Classes are uneven if one has over `UNEVEN` times the test images of another: the accuracy then speaks of the
    frequent classes, and hides that rare ones are missed.
    """
    return RECALL if class_imbalance(confusion, tasks) > UNEVEN else ACCURACY


def accuracy_rows(confusion: Counts, tasks: Tasks, class_names: Sequence[str]) -> Iterator[dict[str, int | str]]:
    """Yield the rows of `accuracy_matrix.csv`: how many test images per class each site got right after each task.

    Columns: site (index from 0, as in the events), after_task and task (counted from 1; task is the one that brought
    the class), class (its name), correct, total. Only rows with total > 0: a site without test images of a class has no
    row for it, since having no images differs from having no correct answer.
    """
    _check(confusion, tasks)
    correct, total = _per_class(confusion)
    task_of = {label: task for task, labels in enumerate(tasks, start=1) for label in labels}
    for after, site, label in np.argwhere(total).tolist():
        yield {
            "site": site,
            "after_task": after + 1,
            "task": task_of[label],
            "class": class_names[label],
            "correct": int(correct[after, site, label]),
            "total": int(total[after, site, label]),
        }


def confusion_rows(confusion: Counts, tasks: Tasks, class_names: Sequence[str]) -> Iterator[dict[str, int | str]]:
    """Yield the rows of `confusion_matrix.csv`: all non-zero counts.

    Columns: site (index from 0), after_task (counted from 1), true, predicted (class names), count.
    """
    _check(confusion, tasks)
    for after, site, true, predicted in np.argwhere(confusion).tolist():
        yield {
            "site": site,
            "after_task": after + 1,
            "true": class_names[true],
            "predicted": class_names[predicted],
            "count": int(confusion[after, site, true, predicted]),
        }


def _per_class(confusion: Counts) -> tuple[Counts, Counts]:
    """Count correct and all images by task, site and true class: two int64 [T, K, C]."""
    return np.diagonal(confusion, axis1=2, axis2=3), confusion.sum(axis=3)


def _percent(part: Counts, whole: Counts) -> Percent:
    share = np.full(whole.shape, np.nan)
    np.divide(part, whole, out=share, where=whole > 0)
    return 100 * share


def _mean(values: Percent) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")


def _check(confusion: Counts, tasks: Tasks) -> None:
    if confusion.ndim != 4 or confusion.shape[2] != confusion.shape[3] or 0 in confusion.shape:
        raise ValueError(f"confusion must have the shape [tasks, sites, classes, classes], got {confusion.shape}")
    finished, _, classes, _ = confusion.shape
    if len(tasks) < finished:
        raise ValueError(f"confusion covers {finished} finished tasks, but only {len(tasks)} tasks are given")
    labels = [label for task in tasks for label in task]
    if len(set(labels)) != len(labels) or any(not 0 <= label < classes for label in labels):
        raise ValueError(f"tasks must contain class indices below {classes}, each at most once, got {list(tasks)}")
    if confusion.min() < 0:
        raise ValueError("confusion contains negative counts")
    for after in range(finished):
        seen = [label for task in tasks[: after + 1] for label in task]
        unseen = np.setdiff1d(np.flatnonzero(confusion[after].sum(axis=(0, 2))), seen).tolist()
        if unseen:
            raise ValueError(
                f"after task {after + 1}, confusion contains images of the classes {unseen}, which are not learnt yet"
            )
