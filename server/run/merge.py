"""Merge a round's updates into one model, by the configured aggregator or the private mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from dynammo_core.aggregation import AGGREGATORS
from dynammo_core.aggregation.class_aware import Update, held_to_share
from dynammo_core.experiment import Experiment
from dynammo_core.models.heads import head_rows, summed_names
from dynammo_core.models.incremental_model import IncrementalModel
from dynammo_core.plan import Step
from dynammo_core.privacy.client_level import noised_mean
from dynammo_core.privacy.noise import SeededNoise, SystemNoise
from dynammo_core.wire.protocol import Report, names_up


def merged(
    experiment: Experiment, model: IncrementalModel, step: Step, reports: Mapping[int, Report], *, asked: int
) -> tuple[dict[str, Tensor], list[int], list[int]]:
    """Merge a round's reports into one set of tensors.

    Args:
        experiment: says how.
        model: the server's own.
        step: the step that was asked.
        reports: by site; at least one does not abstain.
        asked: sites that were asked, whether they answered or not.

    Returns:
        The tensors of the stage by name, the samples per class [C] that count in them, and the sites whose weight was
        limited by `limits.largest_share`.
    """
    updates = {
        site: Update(report.weights, report.class_counts)
        for site, report in sorted(reports.items())
        if not report.abstained
    }
    limited_updates = held_to_limits(experiment, model, step, list(updates.values()))
    limited = [site for site, update in zip(updates, limited_updates, strict=True) if update.kept < 1]
    class_counts = [sum(per_site) for per_site in zip(*(update.counted for update in limited_updates), strict=True)]
    return merge_updates(experiment, model, step, limited_updates, sites=asked), class_counts, limited


def held_to_limits(
    experiment: Experiment, model: IncrementalModel, step: Step, updates: Sequence[Update]
) -> list[Update]:
    """Return updates of which none counts for more than its share, if sites' claims weight them.

    Sums stay as they are, since a record could not be removed from part of a sum. Under client-level privacy claims
    carry no weight.
    """
    added_up = set(names_up(model, step.stage)) <= summed_names(model)
    if added_up or experiment.config.privacy.mechanism == "client":
        return list(updates)
    return held_to_share(updates, experiment.config.limits.largest_share)


def merge_updates(
    experiment: Experiment, model: IncrementalModel, step: Step, updates: Sequence[Update], *, sites: int
) -> dict[str, Tensor]:
    """Return the tensors of a stage after a round, by name.

    Args:
        experiment: says how.
        model: the server's own.
        step: the step that was asked.
        updates: at least one, sorted by site.
        sites: sites that were asked, whether they answered or not.
    """
    config, state = experiment.config, model.state_dict()
    if config.privacy.mechanism != "client":
        aggregate = AGGREGATORS[config.federation.aggregator](config.federation.liars, config.federation.mixing)
        return aggregate(updates, head_rows(model), state, summed_names(model))
    # Noise is seeded in a simulation, so that runs repeat; for real sites nobody can draw it again.
    seeded = SeededNoise(config.seed, "client noise", step.index)
    return noised_mean(
        [update.weights for update in updates],
        state,
        names=names_up(model, step.stage),
        sites=sites,
        clip=config.privacy.clip,
        noise_multiplier=experiment.noise_multiplier,
        noise=SystemNoise() if config.federation.site_names else seeded,
    )
