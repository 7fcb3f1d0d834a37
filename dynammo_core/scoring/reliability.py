"""Measures of whether a model's confidence is reliable, and whether it notices what it has not learnt.

Sites count their test images into two tables of fixed bins, which add up over sites; all else is computed from sums of
them. Shares are in percent, and nan without images.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

Counts: TypeAlias = NDArray[np.int64]
Values: TypeAlias = NDArray[np.float64]

CONFIDENCE_BINS = 15
"""Number of bins of confidence, of equal width between 0 and 1, as in Guo et al. (arXiv 1706.04599)."""

UNIT = 1000
"""Confidences are counted in thousandths, so that their sums are integers too."""

SCORE_EDGES = 1 / (1 + np.exp(-np.arange(-15.75, 16, 0.25)))
"""Inner edges of the 128 bins of the open-set score: equal steps of its log odds, as most scores are near 0 or 1."""

SCORE_BINS = len(SCORE_EDGES) + 1
KEPT_PERCENT = 95
"""Share of the images of learnt classes that a threshold on the open-set score must let pass."""


@dataclass(frozen=True)
class Reliability:
    """The two tables of one site or of all sites.

    Attributes:
        calibration: int64 [3, 15], test images of learnt classes by the confidence of their answer: number of images,
            number answered right, and summed confidence in thousandths.
        open_set: int64 [2, 128], test images by open-set score, from 0 to 1: those of learnt classes, and those of
            later tasks' classes of which a site already holds test images.
    """

    calibration: Counts
    open_set: Counts

    @classmethod
    def counted(cls, confidence: Values, right: NDArray[np.bool_], known: Values, others: Values) -> Self:
        """Count N images of learnt classes and M images of others into tables.

        Args:
            confidence: [N], the confidence of the answers.
            right: [N], whether the answers are right.
            known: [N], the open-set scores of images of learnt classes.
            others: [M], the open-set scores of images of other classes.
        """
        thousandths = np.rint(UNIT * confidence.clip(0, 1)).astype(np.int64)
        bins = np.minimum(thousandths * CONFIDENCE_BINS // UNIT, CONFIDENCE_BINS - 1)
        calibration = np.zeros((3, CONFIDENCE_BINS), dtype=np.int64)
        for row, amounts in zip(calibration, (np.ones_like(bins), right.astype(np.int64), thousandths), strict=True):
            np.add.at(row, bins, amounts)
        places = (np.searchsorted(SCORE_EDGES, scores, side="right") for scores in (known, others))
        return cls(calibration, np.stack([np.bincount(place, minlength=SCORE_BINS) for place in places]))

    @classmethod
    def of(cls, numbers: Mapping[str, object]) -> Self:
        """Return the tables in a site's or a total's numbers; zeros if they are missing."""
        empty = {name: [0] * length for name, length in LENGTHS.items()}
        tables = (np.array(numbers.get(name, zeros), dtype=np.int64) for name, zeros in empty.items())
        calibration, open_set = tables
        return cls(calibration.reshape(3, CONFIDENCE_BINS), open_set.reshape(2, SCORE_BINS))

    def __add__(self, other: Reliability) -> Reliability:
        return Reliability(self.calibration + other.calibration, self.open_set + other.open_set)

    def as_numbers(self) -> dict[str, list[int]]:
        """Return the tables as lists, row by row, in which they travel and are stored."""
        return {"calibration": self.calibration.flatten().tolist(), "open_set": self.open_set.flatten().tolist()}

    @property
    def images(self) -> int:
        """Return the number of test images of learnt classes."""
        return int(self.calibration[0].sum())

    @property
    def to_come(self) -> int:
        """Return the number of test images of classes that are still to come."""
        return int(self.open_set[1].sum())

    def obstacle(self, images: int, right: int) -> str:
        """Say why the tables are impossible for so many images and right answers; empty if they are possible."""
        counted, correct, summed = self.calibration
        edges = np.arange(CONFIDENCE_BINS + 1) * UNIT / CONFIDENCE_BINS
        if (self.images, correct.sum()) != (images, right) or (correct > counted).any():
            return "'calibration' does not add up to 'confusion'"
        if (summed < counted * np.ceil(edges[:-1])).any() or (summed > counted * edges[1:]).any():
            return "'calibration' has sums of confidences that their bins cannot contain"
        return "" if self.open_set[0].sum() == images else "'open_set' does not add up to 'class_counts'"


LENGTHS: Mapping[str, int] = {"calibration": 3 * CONFIDENCE_BINS, "open_set": 2 * SCORE_BINS}
"""Lengths of the tables as they travel."""


def calibration_error(tables: Reliability) -> float:
    """Compute the expected calibration error: the gap of confidence and accuracy over bins, weighted by images.

    sum over bins of |right - summed confidence| / images of all bins (Guo et al., arXiv 1706.04599, equation 5).
    """
    _, right, summed = tables.calibration
    return 100 * float(np.abs(right - summed / UNIT).sum() / tables.images) if tables.images else float("nan")


def receiver_curve(tables: Reliability) -> tuple[Values, Values]:
    """Compute the ROC curve of "this class is learnt", from the strictest threshold to the loosest.

    Returns:
        Shares of images of classes not learnt, and of learnt ones, that score at or above each edge: two [129].
    """
    passing = np.cumsum(tables.open_set[:, ::-1], axis=1)
    totals = passing[:, -1:]
    shares = np.divide(passing, totals, out=np.full(passing.shape, np.nan), where=totals > 0)
    learnt, others = np.hstack([np.zeros((2, 1)), shares])
    return others, learnt


def open_set_auroc(tables: Reliability) -> float:
    """Compute the area under the ROC curve: how often an image of a learnt class outscores one of a class not learnt.

    Images in one bin are ties and count half (Hendrycks and Gimpel, arXiv 1610.02136).
    """
    others, learnt = receiver_curve(tables)
    return 100 * float(np.trapezoid(learnt, others))


def known_threshold(tables: Reliability) -> float:
    """Return the highest edge of a bin at or above which at least 95 % of the images of learnt classes score."""
    bin_ = _threshold_bin(tables)
    return float("nan") if bin_ is None else float(np.append(0.0, SCORE_EDGES)[bin_])


def false_positive_rate(tables: Reliability) -> float:
    """Compute FPR95, the share of images of classes not learnt that pass where 95 % of those of learnt ones pass.

    It is read off the ROC curve between two edges, as if scores were even within a bin: 95 % fall on no edge (Liang et
    al., arXiv 1706.02690). At `known_threshold`, which is an edge, as many pass or more.
    """
    others, learnt = receiver_curve(tables)
    if np.isnan(others).any() or np.isnan(learnt).any():
        return float("nan")
    above = int(np.argmax(100 * learnt >= KEPT_PERCENT))
    return 100 * float(np.interp(KEPT_PERCENT / 100, learnt[above - 1 : above + 1], others[above - 1 : above + 1]))


MEASURES = {
    "calibration_error": calibration_error,
    "open_set_auroc": open_set_auroc,
    "open_set_fpr95": false_positive_rate,
}
"""The functions of all shares, by their names in summaries, to which `_after_tasks` is appended there."""


COLUMNS: Mapping[str, tuple[str, ...]] = {
    "calibration": ("images", "correct", "thousandths"),
    "open_set": ("learnt", "to_come"),
}
"""The rows of each table, as columns of the CSV file of its name, after `after_task` and `bin`, both from 1."""


def table_rows(name: str, after_tasks: Mapping[int, Reliability]) -> Iterator[dict[str, int]]:
    """Yield the rows of a table's CSV file for all bins that are not empty; keys are tasks, counted from 0."""
    for task, tables in sorted(after_tasks.items()):
        table: Counts = getattr(tables, name)
        for place in np.flatnonzero(table.any(axis=0)).tolist():
            counts = dict(zip(COLUMNS[name], table[:, place].tolist(), strict=True))
            yield {"after_task": task + 1, "bin": place + 1, **counts}


def tables_from_rows(rows: Mapping[str, Iterable[Mapping[str, str]]]) -> dict[int, Reliability]:
    """Return the tables after each task, counted from 0, from the rows of each table's file."""
    found: dict[int, Reliability] = {}
    for name, columns in COLUMNS.items():
        for row in rows[name]:
            table = getattr(found.setdefault(int(row["after_task"]) - 1, Reliability.of({})), name)
            table[:, int(row["bin"]) - 1] = [int(row[column]) for column in columns]
    return found


def _threshold_bin(tables: Reliability) -> int | None:
    learnt = tables.open_set[0]
    if not learnt.any():
        return None
    at_or_above = np.cumsum(learnt[::-1])[::-1]
    return int(np.flatnonzero(100 * at_or_above >= KEPT_PERCENT * learnt.sum())[-1])
