"""Which sums withdrawn records can be taken out of: known as they are, and of features that can be computed again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynammo_core.aggregation.batch_norm import is_batch_norm_statistic
from dynammo_core.models.names import travelling_names
from dynammo_core.support.errors import RunError

if TYPE_CHECKING:
    from dynammo_core.experiment import Experiment


def require_correctable(experiment: Experiment, task: int) -> None:
    """Refuse to correct sums, in a task, to which nobody can tell what a record brought.

    Raises:
        RunError: something hides them, cuts them, or changes the features with each step.
    """
    config = experiment.config
    if config.federation.sums_rows is not None:
        raise RunError("sums of which federation.sums_rows left out a part cannot be corrected: it is unknown")
    if not experiment.keeps_plain_sums:
        raise RunError(
            "sums that noise or masks hide cannot be corrected: the correction would reveal the withdrawn records"
        )
    own = config.scanners.own_statistics
    if own in ("trained", "all") and any(map(is_batch_norm_statistic, travelling_names(experiment.build_model(task)))):
        raise RunError(
            f"under scanners.own_statistics: {own} each step has its own features, so what a record brought to the "
            "sums cannot be computed again",
            remedy="To remove what this model has learnt from a record, start a new run without the record",
        )
