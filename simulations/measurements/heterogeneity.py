"""How a model of one site fares at the others: each site learning alone, all together, and by their own statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from statistics import mean

from dynammo_core.configuration.config import Scalar, load_config
from dynammo_core.support.errors import ConfigError
from simulations.comparisons.compare import Cell, Json, Wire
from simulations.measurements.figures import Columns, decimals

TOGETHER = "all sites"
MEASURES = {"accuracy": ("site_accuracies", ""), "mean class recall": ("site_mean_class_recalls", "recall_")}
"""By what people call a measure: its key by site in a summary, and what the names of its columns begin with."""


def plan(
    config: Path, overrides: Mapping[str, Scalar], *, seeds: Sequence[int], statistics: Sequence[str]
) -> list[Cell]:
    """Return the runs of each site alone and of all together, with one scanner for all and with scanners of their own.

    With scanners of their own, all sites together also run with each way of own statistics.

    Args:
        config: the experiment's file, with scanners that differ.
        overrides: new values of its leaves.
        seeds: one run each; empty for the experiment's own.
        statistics: values of `scanners.own_statistics` to try.

    Raises:
        ConfigError: the configuration is wrong, or has one site, no scanners, or answers that nobody sees one by one.
    """
    read = load_config(config, overrides)
    kind, sites = read.scanners.kind, read.federation.sites
    if kind == "same" or sites < 2:
        raise ConfigError(
            f"{config} has {sites} sites and scanners.kind: {kind}, so there is no difference to measure",
            remedy="Set at least two sites and another scanners.kind, such as --set scanners.kind=stain",
        )
    if read.federation.secure_aggregation:
        raise ConfigError(
            "secure aggregation sums over several sites, so one site cannot learn alone",
            remedy="Set federation.secure_aggregation: false",
        )

    def trial(scanners: str, trained_at: str, learner: int | None, own: str) -> list[Cell]:
        shared = {**overrides, "scanners.kind": scanners, "scanners.own_statistics": own}
        wire = Wire("together" if learner is None else f"alone-{learner}", learner=learner)
        return [
            Cell(scanners, trained_at, seed, load_config(config, {**shared, "seed": seed}), wire)
            for seed in seeds or (read.seed,)
        ]

    cells = []
    for scanners in ("same", kind):
        for site in range(sites):
            cells += trial(scanners, f"site {site} alone", site, "none")
        cells += trial(scanners, TOGETHER, None, "none")
    for own in dict.fromkeys(statistics):
        cells += trial(kind, f"{TOGETHER}, own statistics: {own}", None, own)
    return cells


def rows(cells: Sequence[Cell], runs: Path) -> list[Json]:
    """Return a row for each trainer under each kind of scanners: the last measures at each site, means over seeds.

    `own` is that of a lone trainer at home and `others` the mean elsewhere; of all sites together, `own` is their mean.
    Figures are None while a run is missing, or where an earlier version has not measured them.
    """
    table: list[Json] = []
    for (scanners, trained_at), trial in groupby(cells, key=lambda cell: (cell.setting, cell.row)):
        by_seed = list(trial)
        learner, sites = by_seed[0].wire.learner, by_seed[0].config.federation.sites
        summaries = [summary for cell in by_seed if (summary := cell.summary(runs)) is not None]
        row: Json = {"scanners": scanners, "trained_at": trained_at, "seeds": len(by_seed)}
        for key, prefix in MEASURES.values():
            at: list[float | None] = [None] * sites
            if len(summaries) == len(by_seed):
                by_site = zip(*(summary.get(key, at) for summary in summaries), strict=True)
                at = [None if None in values else round(mean(values), 4) for values in by_site]
            row |= {f"{prefix}site_{site}": value for site, value in enumerate(at)}
            row[f"{prefix}own"] = _mean(at) if learner is None else at[learner]
            row[f"{prefix}others"] = None if learner is None else _mean(at[:learner] + at[learner + 1 :])
        table.append(row)
    return table


def columns(sites: int, measure: str) -> Columns:
    """Return what is printed of a row for one of `MEASURES`."""
    _, prefix = MEASURES[measure]
    shown = {f"at {site}": f"{prefix}site_{site}" for site in range(sites)}
    shown |= {name: f"{prefix}{name}" for name in ("own", "others")}
    return {
        "trained at": lambda row: row["trained_at"],
        **{heading: lambda row, key=key: decimals(row[key]) for heading, key in shown.items()},  # type: ignore[misc]
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(mean(known), 4) if known else None
