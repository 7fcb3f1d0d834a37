"""Which of two measures is read first, as it stands in what a run writes; asking loads no NumPy."""

from __future__ import annotations

from collections.abc import Mapping

RECALL, ACCURACY = "mean_class_recall", "last_accuracy"
"""What `leading_metric` is where classes are uneven, and where they are not (`metrics.leading_metric`)."""


def recall_leads(figures: Mapping[str, object]) -> bool:
    """Tell whether a summary or a test names the mean class recall as what to read first."""
    return figures.get("leading_metric") == RECALL
