"""Calibration and open-set measures against tables worked out by hand, scikit-learn and torchmetrics."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score, roc_curve
from torchmetrics.classification import BinaryCalibrationError

from dynammo_core.scoring.reliability import (
    COLUMNS,
    MEASURES,
    SCORE_BINS,
    SCORE_EDGES,
    Reliability,
    calibration_error,
    false_positive_rate,
    known_threshold,
    open_set_auroc,
    receiver_curve,
    table_rows,
    tables_from_rows,
)

NOTHING = Reliability.of({})


def scores(known: list[float], others: list[float]) -> Reliability:
    sure = np.ones(len(known))
    return Reliability.counted(sure, sure > 0, np.array(known), np.array(others))


def sample(seed: int) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.float64], NDArray[np.float64]]:
    """400 answers, more often right where surer, and 300 images of classes to come, with lower scores."""
    random = np.random.default_rng(seed)
    confidence = random.beta(4, 1, 400)
    return confidence, random.random(400) < confidence**2, random.beta(6, 2, 400), random.beta(3, 3, 300)


def test_the_calibration_error_by_hand() -> None:
    # Bins of 1/15. Three answers of 0.95, two right: |2 - 2.85| = 0.85. Two of 0.5, both right: |2 - 1.0| = 1.
    # (0.85 + 1) / 5 images = 0.37.
    confidence, right = np.array([0.95, 0.95, 0.95, 0.5, 0.5]), np.array([True, True, False, True, True])
    tables = Reliability.counted(confidence, right, confidence, np.empty(0))
    assert calibration_error(tables) == pytest.approx(37)
    assert tables.calibration[:, 14].tolist() == [3, 2, 2850]
    assert tables.calibration[:, 7].tolist() == [2, 2, 1000]
    assert tables.images == 5


@pytest.mark.parametrize("seed", range(3))
def test_the_calibration_error_is_that_of_torchmetrics(seed: int) -> None:
    confidence, right, known, others = sample(seed)
    # torchmetrics takes a probability of "right" for a confidence, and compares it with how often it came true.
    expected = BinaryCalibrationError(n_bins=15, norm="l1")(torch.tensor(confidence), torch.tensor(right).int())
    tables = Reliability.counted(confidence, right, known, others)
    # A confidence is off by 0.0005 at most, and one that lies so close to an edge may change bins: less than 1 in 50.
    assert calibration_error(tables) == pytest.approx(100 * float(expected), abs=0.3)


@pytest.mark.parametrize("seed", range(3))
def test_the_area_is_that_of_scikit_learn_up_to_ties_within_bins(seed: int) -> None:
    confidence, right, known, others = sample(seed)
    tables, labels = Reliability.counted(confidence, right, known, others), np.repeat([1, 0], [400, 300])
    every = np.concatenate([known, others])
    binned = np.searchsorted(SCORE_EDGES, every, side="right")
    assert open_set_auroc(tables) == pytest.approx(100 * float(roc_auc_score(labels, binned)))
    # Pairs within a bin count half: the area is off by half the share of such pairs at most.
    ties = 50 * float((tables.open_set[0] * tables.open_set[1]).sum()) / (400 * 300)
    assert abs(open_set_auroc(tables) - 100 * float(roc_auc_score(labels, every))) <= ties < 3


@pytest.mark.parametrize("seed", range(3))
def test_the_false_positives_are_those_of_scikit_learn_within_the_bin_of_the_threshold(seed: int) -> None:
    confidence, right, known, others = sample(seed)
    tables, labels = Reliability.counted(confidence, right, known, others), np.repeat([1, 0], [400, 300])
    passing, learnt, _ = roc_curve(labels, np.concatenate([known, others]), drop_intermediate=False)
    exact = 100 * float(passing[np.argmax(learnt >= 0.95)])
    strictest = int((receiver_curve(tables)[1] >= 0.95).argmax())
    below, above = 100 * receiver_curve(tables)[0][strictest - 1 : strictest + 1]
    assert below <= false_positive_rate(tables) < above or below == above
    assert abs(false_positive_rate(tables) - exact) < 0.6 * (above - below) + 0.1  # by the upper edge alone: all of it


def test_scores_apart_alike_and_turned_round() -> None:
    apart = scores([0.99] * 20, [0.1] * 5)
    assert (open_set_auroc(apart), false_positive_rate(apart)) == (100, 0)
    alike = scores([0.5] * 20, [0.5] * 5)
    assert (open_set_auroc(alike), false_positive_rate(alike)) == (50, pytest.approx(95))
    turned = scores([0.1] * 20, [0.99] * 5)
    assert (open_set_auroc(turned), false_positive_rate(turned)) == (0, 100)


def test_the_threshold_lets_95_of_100_pass_and_is_the_highest_such_edge() -> None:
    # 5 of 100 known images score 0.2, 95 score 0.6; of four others two score 0.61, in the same bin, one less, one more.
    tables = scores([0.2] * 5 + [0.6] * 95, [0.61, 0.61, 0.3, 0.9])
    assert known_threshold(tables) == SCORE_EDGES[SCORE_EDGES <= 0.6].max()
    assert false_positive_rate(tables) == 75
    assert false_positive_rate(scores([0.6] * 100, [0.61, 0.61, 0.3, 0.9])) == pytest.approx(25 + 0.95 * 50)
    # With 6 at 0.2 only 94 pass there: the threshold falls to the bin of 0.2.
    tables = scores([0.2] * 6 + [0.6] * 94, [0.61, 0.61, 0.3, 0.1])
    assert known_threshold(tables) == SCORE_EDGES[SCORE_EDGES <= 0.2].max()
    assert false_positive_rate(tables) == 75  # nobody scores in the bin of 0.2


def test_a_score_on_an_edge_passes_it() -> None:
    assert known_threshold(scores([0.5] * 3, [])) == 0.5  # the middle edge, of log odds 0


def test_the_curve_runs_from_nobody_to_everybody() -> None:
    others, learnt = receiver_curve(scores([0.9, 0.5], [0.5, 0.1]))
    assert (others[0], learnt[0], others[-1], learnt[-1]) == (0, 0, 1, 1)
    assert len(others) == len(learnt) == SCORE_BINS + 1
    # Strictest first: 0.9 passes alone, then both of 0.5, then 0.1.
    assert sorted(set(zip(others.tolist(), learnt.tolist(), strict=True))) == [(0, 0), (0, 0.5), (0.5, 1), (1, 1)]


def test_what_no_image_speaks_for_is_nan() -> None:
    assert all(math.isnan(measure(NOTHING)) for measure in (*MEASURES.values(), known_threshold))
    known_alone = scores([0.9] * 3, [])
    assert math.isnan(open_set_auroc(known_alone))
    assert math.isnan(false_positive_rate(known_alone))
    assert known_threshold(known_alone) == SCORE_EDGES[SCORE_EDGES <= 0.9].max()


def test_the_ends_of_the_scale_have_bins() -> None:
    ends = np.array([0.0, 1.0])
    tables = Reliability.counted(ends, ends > 0, ends, np.empty(0))
    assert tables.calibration[:, [0, -1]].tolist() == [[1, 1], [0, 1], [0, 1000]]
    assert tables.open_set[0, [0, -1]].tolist() == [1, 1]


def test_tables_add_up_and_travel_as_they_are() -> None:
    whole, (first, second) = sample(0), (sample(0), sample(1))
    both = Reliability.counted(*(np.concatenate(pair) for pair in zip(first, second, strict=True)))
    added = Reliability.counted(*first) + Reliability.counted(*second)
    numbers = Reliability.counted(*whole).as_numbers()
    assert added.as_numbers() == both.as_numbers()
    assert Reliability.of(numbers).as_numbers() == numbers
    assert all(type(count) is int for counts in numbers.values() for count in counts)


def test_rows_of_the_files_hold_the_tables() -> None:
    after_tasks = {0: Reliability.counted(*sample(0)), 3: Reliability.counted(*sample(1))}
    rows = {
        name: [{key: str(value) for key, value in row.items()} for row in table_rows(name, after_tasks)]
        for name in COLUMNS
    }
    assert {row["after_task"] for row in rows["calibration"]} == {"1", "4"}
    found = tables_from_rows(rows)
    assert {task: tables.as_numbers() for task, tables in found.items()} == {
        task: tables.as_numbers() for task, tables in after_tasks.items()
    }


def test_tables_that_contradict_the_confusion_are_found() -> None:
    confidence, right, known, others = sample(0)
    tables = Reliability.counted(confidence, right, known, others)
    correct = int(right.sum())
    assert tables.obstacle(400, correct) == ""
    assert "'calibration'" in tables.obstacle(399, correct)
    assert "'calibration'" in tables.obstacle(400, correct + 1)
    for row, place, change in ((0, 3, 1), (1, 14, 1), (1, 14, 10**6), (2, 14, 10**6), (2, 14, -(10**6)), (2, 0, -1)):
        changed = tables.calibration.copy()
        changed[row, place] += change
        assert Reliability(changed, tables.open_set).obstacle(400, correct), (row, place, change)
    changed = tables.calibration.copy()
    changed[1, [0, 14]] += [1 + changed[0, 0], -1 - changed[0, 0]]  # more right answers in a bin than answers
    assert Reliability(changed, tables.open_set).obstacle(400, correct)
    changed = tables.open_set.copy()
    changed[0, 80] += 1
    assert "'open_set'" in Reliability(tables.calibration, changed).obstacle(400, correct)
    changed = tables.open_set.copy()
    changed[1, 80] += 1  # nobody else tells how many images of classes to come there are
    assert Reliability(tables.calibration, changed).obstacle(400, correct) == ""
