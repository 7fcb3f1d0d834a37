"""Metrics against numbers derived by hand, against scikit-learn, and against their own algebra."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import accuracy_score, balanced_accuracy_score

from dynammo_core.scoring import metrics
from dynammo_core.scoring.metrics import Counts

TASKS = [[2, 0], [1], [3]]
NAMES = ["zero", "one", "two", "three"]


def table() -> Counts:
    """Three tasks, two sites, four classes; site 1 holds only class 2. (correct / images) by hand:

    after task 1: class 0  8/10, class 2  6/10 (4 of its images at site 1, all right)   tasks: 14/20
    after task 2: class 0  9/10, class 2  7/10, class 1  2/5                            tasks: 16/20, 2/5
    after task 3: class 0  4/10, class 2  6/10, class 1  4/5,  class 3  15/15           tasks: 10/20, 4/5, 15/15
    """
    confusion = np.zeros((3, 2, 4, 4), dtype=np.int64)
    confusion[0, 0, 0, [0, 2]] = 8, 2
    confusion[0, 0, 2, [2, 0]] = 2, 4
    confusion[0, 1, 2, 2] = 4
    confusion[1, 0, 0, [0, 1]] = 9, 1
    confusion[1, 0, 2, [2, 1]] = 4, 2
    confusion[1, 1, 2, [2, 0]] = 3, 1
    confusion[1, 0, 1, [1, 0]] = 2, 3
    confusion[2, 0, 0, [0, 3]] = 4, 6
    confusion[2, 0, 2, [2, 3]] = 5, 1
    confusion[2, 1, 2, [2, 3]] = 1, 3
    confusion[2, 0, 1, [1, 3]] = 4, 1
    confusion[2, 0, 3, 3] = 15
    return confusion


def test_accuracies_by_hand() -> None:
    # 14/20, (16 + 2)/25, (10 + 4 + 15)/40
    assert metrics.accuracy_after_tasks(table(), TASKS) == pytest.approx([70, 72, 72.5])
    assert metrics.average_incremental_accuracy(table(), TASKS) == pytest.approx((70 + 72 + 72.5) / 3)
    assert metrics.last_accuracy(table(), TASKS) == pytest.approx(72.5)
    nan = math.nan
    expected = [[70, nan, nan], [80, 40, nan], [50, 80, 100]]
    np.testing.assert_allclose(metrics.accuracy_matrix(table(), TASKS), expected)


def test_forgetting_and_transfer_by_hand() -> None:
    # Task 1: best of 70, 80 is 80, now 50; task 2: best before the end 40, now 80: it gained, which counts as such.
    # Transfer starts from the diagonal: 50 - 70, 80 - 40.
    assert metrics.forgetting(table(), TASKS) == pytest.approx((30 - 40) / 2)
    assert metrics.backward_transfer(table(), TASKS) == pytest.approx((-20 + 40) / 2)


def test_recall_and_sites_by_hand() -> None:
    # Recalls: (80 + 60) / 2; (90 + 70 + 40) / 3; (40 + 60 + 80 + 100) / 4.
    assert metrics.mean_class_recall_after_tasks(table(), TASKS) == pytest.approx([70, 200 / 3, 70])
    assert metrics.mean_class_recall(table(), TASKS) == pytest.approx(70)
    assert metrics.average_mean_class_recall(table(), TASKS) == pytest.approx((70 + 200 / 3 + 70) / 3)
    # Site 0: (4 + 5 + 4 + 15) / 36; site 1: 1/4.
    assert metrics.site_accuracies(table(), TASKS) == pytest.approx([100 * 28 / 36, 25])
    assert metrics.worst_site_accuracy(table(), TASKS) == pytest.approx(25)
    # Site 0: (40 + 83.3 + 80 + 100) / 4; site 1 has one class.
    assert metrics.site_mean_class_recalls(table(), TASKS) == pytest.approx([100 * (0.4 + 5 / 6 + 0.8 + 1) / 4, 25])
    assert metrics.worst_site_mean_class_recall(table(), TASKS) == pytest.approx(25)


def test_the_mean_class_recall_leads_where_classes_are_uneven() -> None:
    assert metrics.class_imbalance(table(), TASKS) == 3  # 15 images of class 3, 5 of class 1
    assert metrics.leading_metric(table(), TASKS) == "mean_class_recall"
    assert metrics.class_imbalance(table()[:1], TASKS) == 1  # classes to come have no images, and do not count
    assert metrics.leading_metric(table()[:1], TASKS) == "last_accuracy"
    twice = np.zeros((1, 1, 2, 2), dtype=np.int64)
    twice[0, 0, [0, 1], 0] = 2, 1
    assert metrics.leading_metric(twice, [[0, 1]]) == "last_accuracy"
    assert math.isnan(metrics.class_imbalance(np.zeros_like(twice), [[0, 1]]))


def test_one_task_neither_forgets_nor_transfers() -> None:
    assert metrics.forgetting(table()[:1], TASKS) == 0.0
    assert metrics.backward_transfer(table()[:1], TASKS) == 0.0
    assert metrics.average_incremental_accuracy(table()[:1], TASKS) == pytest.approx(70)


def test_sites_and_tasks_without_test_images_are_left_out() -> None:
    confusion = table()
    confusion[:, 1] = 0
    assert math.isnan(metrics.site_accuracies(confusion, TASKS)[1])
    assert metrics.worst_site_accuracy(confusion, TASKS) == pytest.approx(100 * 28 / 36)
    confusion = table()
    confusion[:, :, 1] = 0  # nobody can test task 2: only task 1's fall from 80 to 50 remains
    assert metrics.forgetting(confusion, TASKS) == pytest.approx(30)
    assert metrics.backward_transfer(confusion, TASKS) == pytest.approx(-20)
    assert metrics.mean_class_recall(confusion, TASKS) == pytest.approx((40 + 60 + 100) / 3)
    assert math.isnan(metrics.worst_site_accuracy(np.zeros_like(confusion), TASKS))
    assert math.isnan(metrics.forgetting(np.zeros_like(confusion), TASKS))


def test_rows_for_people() -> None:
    rows = list(metrics.accuracy_rows(table(), TASKS, NAMES))
    # After task 1: classes 0 and 2 at site 0, class 2 at site 1; each later task adds one class at site 0.
    assert len(rows) == 3 + 4 + 5
    assert rows[0] == {"site": 0, "after_task": 1, "task": 1, "class": "zero", "correct": 8, "total": 10}
    assert rows[-1] == {"site": 1, "after_task": 3, "task": 1, "class": "two", "correct": 1, "total": 4}
    counts = list(metrics.confusion_rows(table(), TASKS, NAMES))
    assert {"site": 1, "after_task": 2, "true": "two", "predicted": "zero", "count": 1} in counts
    assert sum(int(row["count"]) for row in counts) == 20 + 25 + 40


@pytest.mark.parametrize(
    ("confusion", "tasks", "message"),
    [
        (np.zeros((4, 4), dtype=np.int64), TASKS, "shape"),
        (np.zeros((0, 2, 4, 4), dtype=np.int64), TASKS, "shape"),
        (table(), TASKS[:2], "only 2 tasks"),
        (table(), [[2, 0], [1], [4]], "below 4"),
        (table(), [[2, 0], [1], [1]], "at most once"),
        (-table(), TASKS, "negative"),
        (table(), [[2], [0], [1, 3]], r"after task 1, .* \[0\]"),
    ],
)
def test_contradictory_counts_are_refused(confusion: Counts, tasks: list[list[int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        metrics.accuracy_after_tasks(confusion, tasks)


@st.composite
def confusions(draw: st.DrawFn) -> tuple[Counts, list[list[int]]]:
    """Counts of 1-4 tasks of 1-2 classes at 1-3 sites, with every class present at site 0."""
    sizes = draw(st.lists(st.integers(1, 2), min_size=1, max_size=4))
    order = draw(st.permutations(range(sum(sizes))))
    starts = np.cumsum([0, *sizes])
    tasks = [list(order[start : start + size]) for start, size in zip(starts, sizes, strict=False)]
    shape = (len(sizes), draw(st.integers(1, 3)), sum(sizes), sum(sizes))
    confusion = draw(hnp.arrays(np.int64, shape, elements=st.integers(0, 20)))
    for after in range(len(tasks)):
        confusion[after, :, [label for task in tasks[after + 1 :] for label in task]] = 0
        confusion[after, 0, [label for task in tasks[: after + 1] for label in task], 0] += 1
    return confusion, tasks


@pytest.mark.filterwarnings("ignore:A single label was found")
@given(confusions())
def test_agrees_with_scikit_learn(case: tuple[Counts, list[list[int]]]) -> None:
    confusion, tasks = case
    pooled = confusion[-1].sum(axis=0)
    true, predicted = (np.repeat(index.ravel(), pooled.ravel()) for index in np.indices(pooled.shape))
    assert metrics.last_accuracy(confusion, tasks) == pytest.approx(100 * accuracy_score(true, predicted))
    recall = balanced_accuracy_score(true, predicted)
    assert metrics.mean_class_recall(confusion, tasks) == pytest.approx(100 * recall)


@given(confusions())
def test_algebra(case: tuple[Counts, list[list[int]]]) -> None:
    confusion, tasks = case
    matrix = metrics.accuracy_matrix(confusion, tasks)
    after = metrics.accuracy_after_tasks(confusion, tasks)
    assert np.array_equal(np.isnan(matrix), ~np.tri(len(matrix), dtype=bool))
    # Pooled accuracy lies between its parts, over tasks as over sites.
    assert np.all(np.nanmin(matrix, axis=1) - 1e-9 <= after)
    assert np.all(after <= np.nanmax(matrix, axis=1) + 1e-9)
    assert metrics.worst_site_accuracy(confusion, tasks) <= metrics.last_accuracy(confusion, tasks) + 1e-9
    # The best before the end is no worse than the first.
    assert metrics.forgetting(confusion, tasks) >= -metrics.backward_transfer(confusion, tasks) - 1e-9
    # Where an image is tested changes only what is said about sites, and every image is in exactly one row.
    merged = confusion.sum(axis=1, keepdims=True)
    np.testing.assert_array_equal(metrics.accuracy_matrix(merged, tasks), matrix)
    assert metrics.mean_class_recall(merged, tasks) == metrics.mean_class_recall(confusion, tasks)
    rows = list(metrics.accuracy_rows(confusion, tasks, [str(label) for label in range(confusion.shape[-1])]))
    assert sum(int(row["total"]) for row in rows) == confusion.sum()
    assert all(int(row["correct"]) <= int(row["total"]) for row in rows)
    assert all(int(row["task"]) <= int(row["after_task"]) for row in rows)


@given(confusions())
def test_perfect_predictions_score_full_marks(case: tuple[Counts, list[list[int]]]) -> None:
    confusion, tasks = case
    perfect = confusion.sum(axis=3)[..., None] * np.eye(confusion.shape[-1], dtype=np.int64)
    assert metrics.average_incremental_accuracy(perfect, tasks) == 100
    assert metrics.mean_class_recall(perfect, tasks) == metrics.worst_site_accuracy(perfect, tasks) == 100
    assert metrics.forgetting(perfect, tasks) == metrics.backward_transfer(perfect, tasks) == 0


def test_few_images_leave_a_sites_recall_uncertain() -> None:
    """Two classes of ten images, half right: each varies by 0.6 * 0.6 / 10, their mean by half of that."""
    counts = np.zeros((1, 2, 3, 3), dtype=np.int64)
    counts[0, 0, :2, :2] = 5
    errors = metrics.site_recall_errors(counts, [(0, 1)])
    assert errors[0] == pytest.approx(100 * math.sqrt(0.036 / 2))
    assert math.isnan(errors[1])
