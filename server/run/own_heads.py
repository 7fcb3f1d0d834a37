"""Compare, for each site, the common classifier with its own and, if that is known, the one it would have alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from dynammo_core.experiment import Experiment
from dynammo_core.plan import ALONE, PERSONAL
from dynammo_core.scoring import metrics
from dynammo_core.scoring.metrics import Counts

Tables = Sequence[Sequence[int]]
"""The counts of a test, [C * C] for each site, or for all together."""

COMMON = "common"
STANDARD_ERRORS = 1.96
"""Standard errors by which two recalls differ by chance in one comparison of twenty."""


def own_heads_summary(experiment: Experiment, task: int, tables: Mapping[str, Tables]) -> dict[str, object]:
    """Return the comparison by site for `summary.json`; empty if sites solve no heads of their own.

    Args:
        experiment: of the run.
        task: the last finished one.
        tables: counts of its test by site, by the name of the head: those of `COMMON`, and of the sites' own.
    """
    if len(tables) == 1:
        return {}
    federation, rows = experiment.config.federation, []
    for site, tested in enumerate(tables[COMMON]):
        side = math.isqrt(len(tested))
        counts = {name: np.array(by_site[site]).reshape(1, 1, side, side) for name, by_site in tables.items()}
        label = "all" if federation.secure_aggregation else experiment.site_label(site)
        rows.append({"site": label, **compare_heads(counts, experiment.stream.seen(task))})
    return {"own_heads": rows}


def compare_heads(counts: dict[str, Counts], seen: tuple[int, ...]) -> dict[str, object]:
    """Compare the heads at one site.

    Args:
        counts: int64 [1, 1, C, C] by the name of the head.
        seen: the classes learnt so far.

    Returns:
        Accuracy and mean class recall by head in percent, and what joining does for the site: `pays`, `does not pay` if
        alone it would do better by more than two samples of test images differ by chance, or else `no difference`; None
        if it cannot be compared, as where nobody knows what the site would have alone.
    """
    found: dict[str, object] = {}
    recalls, errors = dict[str, float](), dict[str, float]()
    for name, table in counts.items():
        recalls[name] = float(metrics.site_mean_class_recalls(table, [seen])[0])
        errors[name] = float(metrics.site_recall_errors(table, [seen])[0])
        accuracy = float(metrics.site_accuracies(table, [seen])[0])
        found[name] = {
            "accuracy": None if math.isnan(accuracy) else round(accuracy, 4),
            "mean_class_recall": None if math.isnan(accuracy) else round(recalls[name], 4),
        }
    if ALONE not in counts:  # a method that averages trains nobody alone
        return {**found, ALONE: {"accuracy": None, "mean_class_recall": None}, "joining": None}
    lead = recalls[PERSONAL] - recalls[ALONE]
    chance = STANDARD_ERRORS * math.hypot(errors[PERSONAL], errors[ALONE])
    verdict = "pays" if lead > chance else "does not pay" if lead < -chance else "no difference"
    return {**found, "joining": None if math.isnan(lead) else verdict}
